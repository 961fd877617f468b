"""The trained model: its weights by name, its start, and compiled kernels."""

import shutil

import pytest
import torch

from rayembed.common.errors import CheckpointError
from rayembed.config.training import TrainingConfig
from rayembed.contract.packing import pack_ids
from rayembed.training.model import ModelSpec, load_trainable_weights, prepare_for_stage, trainable_weights
from tests.training.models import make_embedder
from tests.training.recipes import tiny_recipe as recipe
from tests.training.sources import stage

NEEDS_COMPILER = pytest.mark.skipif(
    not torch.cuda.is_available() and shutil.which("g++") is None, reason="needs a C++ compiler"
)


def test_weights_of_another_model_are_refused(tiny_base):
    model = ModelSpec.of(recipe(tiny_base), tiny_base).build(torch.float32)
    weights = trainable_weights(model)
    assert any(name.startswith("pooling.") for name in weights)
    assert any("lora_A" in name for name in weights)
    assert not any("embed_tokens" in name for name in weights)
    load_trainable_weights(model, weights, "here")
    with pytest.raises(CheckpointError, match=r"pooling\.latents has shape"):
        load_trainable_weights(model, weights | {"pooling.latents": torch.zeros(5, 32)}, "here")
    del weights["pooling.latents"]
    with pytest.raises(CheckpointError, match=r"pooling\.latents is on one side only"):
        load_trainable_weights(model, weights, "here")


def test_same_seed_same_start(tiny_base):
    one, two = (
        trainable_weights(ModelSpec.of(recipe(tiny_base), tiny_base).build(torch.float32)) for _ in range(2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def gradients(*, compiled: bool, checkpointing: bool, lengths: list[int]) -> dict[str, torch.Tensor]:
    model = make_embedder(lora=True).train()
    training = TrainingConfig(compiled=compiled, activation_checkpointing=checkpointing)
    prepare_for_stage(model, stage(), training)
    batch = pack_ids([list(range(1, length + 1)) for length in lengths], [0] * len(lengths))
    vectors_ND = model(batch)
    (vectors_ND * torch.arange(vectors_ND.numel()).view_as(vectors_ND).sin()).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_activation_checkpointing_recomputes_the_head_too():
    passes, found = {}, {}
    for checkpointing in (False, True):
        model = make_embedder(lora=True).train()
        prepare_for_stage(model, stage(), TrainingConfig(activation_checkpointing=checkpointing))
        seen = []
        model.pooling.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        model(pack_ids([[1, 2, 3], [4, 5]], [0, 0]))[:, 0].sum().backward()
        passes[checkpointing] = len(seen)
        found[checkpointing] = {n: w.grad for n, w in model.named_parameters() if w.grad is not None}
    assert passes == {False: 1, True: 2}
    assert found[False].keys() == found[True].keys()
    assert all(torch.equal(found[False][name], found[True][name]) for name in found[False])


@NEEDS_COMPILER
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_kernels_give_the_gradients_of_plain_ones(checkpointing):
    for lengths in ([5, 3], [40, 17, 9]):
        plain = gradients(compiled=False, checkpointing=checkpointing, lengths=lengths)
        ours = gradients(compiled=True, checkpointing=checkpointing, lengths=lengths)
        assert any("lora_A" in name for name in plain)
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_compiled_kernels_are_refused_with_weights_taken_apart():
    with pytest.raises(ValueError, match="exclude each other"):
        TrainingConfig(compiled=True, zero_stage=3)


@NEEDS_COMPILER
def test_compiled_kernels_draw_the_same_dropout_with_and_without_a_graph():
    """As the two passes of GradCache do, where the compiler builds kernels of their own for each."""
    model = make_embedder(lora=True, dropout=0.3).train()
    prepare_for_stage(model, stage(), TrainingConfig(compiled=True))
    for lengths in ([5, 3], [40, 17, 9]):
        batch = pack_ids([list(range(1, length + 1)) for length in lengths], [0] * len(lengths))
        drawn = []
        for seed, graph in ((3, False), (3, True), (4, False)):
            torch.manual_seed(seed)
            with torch.set_grad_enabled(graph):
                drawn.append(model(batch).detach())
        torch.testing.assert_close(drawn[0], drawn[1], atol=1e-6, rtol=1e-6)
        assert (drawn[0] - drawn[2]).abs().max() > 0.01
