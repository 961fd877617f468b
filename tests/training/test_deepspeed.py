"""Continuing from plain tensors equals not having stopped, at every ZeRO stage and rank count.

All cases run in one set of processes, because starting them is what takes time.
"""

import pytest
import torch

from rayembed.config.training import TrainingConfig
from tests.training.models import make_embedder
from tests.training.sources import stage
from tests.training.spawn import run_ranks

STEPS = 3
CASES = [
    (0, torch.float32),
    (1, torch.float32),
    (1, torch.bfloat16),
    (2, torch.bfloat16),
    (3, torch.bfloat16),
]


def make_model():
    """Sizes that do not divide by the number of ranks, and a pooling group of its own."""
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("body", torch.nn.Linear(7, 5))
    model.add_module("pooling", torch.nn.Linear(5, 3))
    return model


def test_weight_decay_spares_norms_biases_and_latents():
    from rayembed.training.deepspeed import parameter_groups

    model = make_embedder(lora=True)
    settings = stage(weight_decay=0.1, pooling_learning_rate=2e-2)
    groups = parameter_groups(model, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group for group in groups for p in group["params"]}
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    head = "pooling.cross_attend_blocks."
    for name, decay in {
        "pooling.latents": 0.0,
        head + "0.norm.weight": 0.0,
        head + "1.fn.net.0.bias": 0.0,
        head + "1.fn.net.0.weight": 0.1,
        head + "0.fn.to_q.weight": 0.1,
        "backbone.layers.0.self_attn.q_proj.lora_A.default.weight": 0.1,
    }.items():
        assert found[name]["weight_decay"] == decay, name
        assert found[name]["base_rate"] == (2e-2 if name.startswith("pooling") else 1e-2)
    assert groups[0]["base_rate"] == 1e-2
    assert len(parameter_groups(model, stage())) == 2


def test_settings_of_deepspeed_are_handed_on():
    from rayembed.training.deepspeed import deepspeed_config

    training = TrainingConfig(
        zero_stage=2,
        tokens_per_chunk=64,
        deepspeed={"zero_optimization": {"overlap_comm": True}, "communication_data_type": "fp32"},
    )
    found = deepspeed_config(stage(), training, 6, torch.bfloat16)
    assert found["zero_optimization"] == {"overlap_comm": True, "stage": 2}
    assert found["communication_data_type"] == "fp32"
    assert found["data_types"] == {"grad_accum_dtype": "fp32"}
    for plain in ({"zero_stage": 1}, {"tokens_per_chunk": None}):
        other = training.model_copy(update=plain)
        assert deepspeed_config(stage(), other, 6, torch.bfloat16)["data_types"]["grad_accum_dtype"] is None


@pytest.mark.parametrize(
    "settings", [{"train_batch_size": 4}, {"zero_optimization": {"stage": 3}}, {"bf16": {"enabled": True}}]
)
def test_settings_that_are_ours_are_refused(settings):
    with pytest.raises(ValueError, match=r"training\.deepspeed takes zero_optimization"):
        TrainingConfig(deepspeed=settings)


def gradient_of_many_chunks(rank, world_size):
    """Relative error of the sum of 64 gradients in bf16 at ZeRO 2 and 3, with and without chunks."""
    from deepspeed.utils import safe_get_full_grad

    from rayembed.training.deepspeed import wrap

    rows = [torch.randn(2, 7, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(64)]
    exact = make_model().bfloat16().double()
    for row in rows:
        exact(row.double()).sum().backward()
    found = {}
    for zero_stage in (2, 3):
        for chunk in (None, 64):
            training = TrainingConfig(zero_stage=zero_stage, tokens_per_chunk=chunk)
            wrapped = wrap(make_model(), stage(), training, rows_per_rank=2, dtype=torch.bfloat16)
            for turn, row in enumerate(rows):
                wrapped.set_gradient_accumulation_boundary(turn == len(rows) - 1)
                wrapped.backward(wrapped(row).float().sum())
            gradient = safe_get_full_grad(wrapped.module.body.weight).double()
            wanted = exact.body.weight.grad
            found[f"{zero_stage} {chunk}"] = float((gradient - wanted).norm() / wanted.norm())
            wrapped.destroy()
    return found


@pytest.mark.slow
def test_gradients_of_chunks_add_up_in_fp32_from_zero_2_on(tmp_path):
    [errors] = run_ranks(gradient_of_many_chunks, 1, tmp_path)
    for zero_stage in (2, 3):
        assert errors[f"{zero_stage} 64"] < errors[f"{zero_stage} None"] / 2


def wrap_model(zero_stage, dtype, world_size, weights=None, make=make_model, optimizer="adamw"):
    from rayembed.training.deepspeed import wrap, write_weights

    model = make()
    if weights:
        model.load_state_dict(weights)
    settings = stage(batch_size=12, weight_decay=0.1, pooling_learning_rate=2e-2)
    training = TrainingConfig(zero_stage=zero_stage, optimizer=optimizer)
    wrapped = wrap(model, settings, training, rows_per_rank=12 // world_size, dtype=dtype)
    if weights:
        write_weights(wrapped, weights)
    return wrapped


def take_steps(wrapped, first, count, rank, world_size, dtype):
    """Each rank sees its share of the same twelve rows of a step."""
    from rayembed.training.deepspeed import set_learning_rate

    width = wrapped.module.body.in_features
    for step in range(first, first + count):
        rows = torch.randn(12, width, generator=torch.Generator().manual_seed(step))
        rows = rows.to(dtype)[rank::world_size]
        set_learning_rate(wrapped, 1.0 - step / 10)
        wrapped.backward(wrapped(rows).float().pow(2).mean())
        wrapped.step()


def unbroken_and_resumed(rank, world_size, zero_stage, dtype):
    from rayembed.training.deepspeed import prime_optimizer, read_state, write_moments, write_weights

    wrapped = wrap_model(zero_stage, dtype, world_size)
    take_steps(wrapped, 0, STEPS, rank, world_size, dtype)
    weights, moments = read_state(wrapped)
    assert bool(read_state(wrapped, keep=rank == 0)[0]) == (rank == 0)
    take_steps(wrapped, STEPS, STEPS, rank, world_size, dtype)
    unbroken, _ = read_state(wrapped)
    wrapped.destroy()

    wrapped = wrap_model(zero_stage, dtype, world_size, weights)
    prime_optimizer(wrapped, wrapped(torch.zeros(1, 7, dtype=dtype)))
    write_weights(wrapped, weights)
    write_moments(wrapped, moments, STEPS)
    take_steps(wrapped, STEPS, STEPS, rank, world_size, dtype)
    resumed, _ = read_state(wrapped)
    wrapped.destroy()
    return {"unbroken": unbroken, "resumed": resumed, "weights": weights, "moments": moments}


def all_cases(rank, world_size):
    return [unbroken_and_resumed(rank, world_size, *case) for case in CASES]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two ranks found, case by case."""
    return run_ranks(all_cases, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: f"zero{CASES[case][0]}-{CASES[case][1]}")
def test_resumed_equals_unbroken(results, case):
    for result in results:
        found = result[case]
        for name, weight in found["unbroken"].items():
            assert weight.dtype is torch.float32
            assert torch.equal(weight, found["resumed"][name]), name
            assert not torch.equal(weight, found["weights"][name])


def continue_alone(rank, world_size, state):
    from rayembed.training.deepspeed import prime_optimizer, read_state, write_moments, write_weights

    wrapped = wrap_model(1, torch.float32, world_size, state["weights"])
    prime_optimizer(wrapped, wrapped(torch.zeros(1, 7)))
    write_weights(wrapped, state["weights"])
    write_moments(wrapped, state["moments"], STEPS)
    take_steps(wrapped, STEPS, STEPS, rank, world_size, torch.float32)
    return read_state(wrapped)[0]


@pytest.mark.slow
def test_another_number_of_ranks_continues(results, tmp_path):
    state = results[0][CASES.index((1, torch.float32))]
    [alone] = run_ranks(continue_alone, 1, tmp_path, state)
    for name, weight in state["unbroken"].items():
        torch.testing.assert_close(alone[name], weight, atol=1e-6, rtol=1e-5)
