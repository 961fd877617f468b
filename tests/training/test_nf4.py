"""Adapters on a base model of four bits: its numbers, training on it, and the model that is exported."""

import pytest
import torch

from rayembed.common.errors import ConfigError
from rayembed.config.training import TrainingConfig
from rayembed.contract.packing import pack_ids
from rayembed.model.checkpoint import load_model
from rayembed.model.nf4 import BITS_PER_WEIGHT, rounded
from rayembed.training.handover import FinishedStage, ModelExport
from rayembed.training.model import ModelSpec, load_trainable_weights, trainable_weights
from rayembed.training.preflight import linear_weights, memory_of_worker
from tests.training.models import gradients
from tests.training.recipes import tiny_recipe
from tests.training.sources import stage
from tests.training.spawn import run_ranks
from tests.training.test_handover import save

pytest.importorskip("bitsandbytes")

BATCH = pack_ids([[3, 4, 5, 6], [7, 8], [9]], [0, 0, 0])
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "quantization": "nf4"}
NF4 = torch.tensor(  # table of QLoRA's appendix E
    [
        [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0],
        [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0],
    ]
).flatten()


def test_a_weight_becomes_the_nearest_of_sixteen_values_times_a_scale_of_its_block():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    for row, packed in zip(weight, rounded(weight), strict=True):
        scale = packed.abs().max()
        torch.testing.assert_close(scale, row.abs().max(), rtol=0.05, atol=0)  # scales are rounded too
        nearest = NF4[(row[:, None] / row.abs().max() - NF4).abs().argmin(1)]
        torch.testing.assert_close(packed / scale, nearest, rtol=0, atol=1e-5)


def trained(base, *, seed=3, **lora):
    """A model whose adapters and head already say something."""
    spec = ModelSpec.of(tiny_recipe(base, lora=LORA | lora), base)
    model = spec.build(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(value.shape, generator=generator) * 0.1
        for name, value in trainable_weights(model).items()
    }
    load_trainable_weights(model, weights, "test")
    return spec, model, weights


def test_values_and_gradients_are_those_of_a_plain_model_with_rounded_weights(tiny_base):
    _, packed, weights = trained(tiny_base)
    _, plain, _ = trained(tiny_base, quantization=None)
    load_trainable_weights(plain, weights, "test")
    assert not torch.allclose(packed(BATCH), plain(BATCH), atol=1e-3)
    for name, parameter in plain.named_parameters():
        if "base_layer.weight" in name:
            parameter.data.copy_(rounded(parameter.data))
    vectors = packed(BATCH)
    torch.testing.assert_close(vectors, plain(BATCH), atol=1e-6, rtol=1e-5)
    for model in (packed, plain):
        model(BATCH)[:, :4].sum().backward()
    expected = gradients(plain)
    for name, gradient in gradients(packed).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


def test_the_export_computes_what_was_trained(tiny_base, home):
    spec, model, weights = trained(tiny_base)
    finished = [FinishedStage("one", "contrastive", 1, False, save(home / "one", weights))]
    ModelExport.of(tiny_recipe(tiny_base, lora=LORA)).write(spec, finished, home / "model")
    exported = load_model(home / "model").embedder
    torch.testing.assert_close(exported(BATCH), model(BATCH), atol=1e-5, rtol=1e-4)


def take_steps(rank, world_size, base):
    from rayembed.training.deepspeed import read_state, set_learning_rate, wrap

    found = {}
    for zero_stage, dtype in ((0, torch.float32), (2, torch.bfloat16)):
        model = ModelSpec.of(tiny_recipe(base, lora=LORA), base).build(dtype)
        packed = {name: p.clone() for name, p in model.named_parameters() if p.dtype is torch.uint8}
        before = trainable_weights(model)
        training = TrainingConfig(zero_stage=zero_stage)
        wrapped = wrap(model, stage(), training, rows_per_rank=3, dtype=dtype)
        for _ in range(2):  # the other half of an adapter begins at zero
            set_learning_rate(wrapped, 1.0)
            wrapped.backward(wrapped(BATCH).float()[:, : 4 + rank].sum())
            wrapped.step()
        after = read_state(wrapped)[0]
        named = dict(model.named_parameters())
        assert packed
        assert all(torch.equal(named[name], value) for name, value in packed.items())
        assert all(not torch.equal(after[name], before[name]) for name in before if "lora" in name)
        found[str(dtype)] = after
        wrapped.destroy()
    return found


@pytest.mark.slow
def test_two_workers_move_the_adapters_alike_and_leave_the_base(tiny_base, tmp_path):
    one, other = run_ranks(take_steps, 2, tmp_path, tiny_base)
    for dtype, weights in one.items():
        assert all(torch.equal(value, other[dtype][name]) for name, value in weights.items())


def test_the_estimate_counts_the_packed_weights(tiny_base):
    def weights(quantization):
        config = tiny_recipe(tiny_base, lora=LORA | {"quantization": quantization})
        spec = ModelSpec.of(config, tiny_base)
        return memory_of_worker(spec, TrainingConfig(precision="bf16"), device="cuda").weights, spec

    (packed, spec), (plain, _) = weights("nf4"), weights(None)
    assert plain - packed == pytest.approx(linear_weights(spec) * (2 - BITS_PER_WEIGHT / 8))
    backbone = spec.build(torch.float32).backbone
    assert linear_weights(spec) == 2 * sum(p.numel() for p in backbone.parameters() if p.dtype is torch.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training": {"zero_stage": 3}},
            r"training\.zero_stage is 3 and lora\.quantization nf4: .* set zero_stage to 2",
        ),
        ({"keep_zeros": True}, r"keep_zeros is on and nf4 moves weights that are zero"),
        (
            {
                "stages": [
                    stage().model_dump(mode="json"),
                    stage(adapters="merge").model_dump(mode="json") | {"name": "two"},
                ]
            },
            r"stage two: adapters: merge would round what was learned to 4 bits",
        ),
    ],
)
def test_what_four_bits_exclude(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_recipe(lora=LORA, **changes)
