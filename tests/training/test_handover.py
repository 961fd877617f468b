"""What stages hand over to one another."""

import pytest
import torch

from rayembed.common.errors import CheckpointError
from rayembed.data.stream import local_batches
from rayembed.training.checkpoint import TrainingState, write_training_state
from rayembed.training.handover import FinishedStage, carried_weights, merge_into_base, starting_weights
from rayembed.training.model import ModelSpec, load_trainable_weights, trainable_weights
from tests.training.recipes import tiny_recipe as recipe
from tests.training.sources import stage, stream_spec


def save(folder, weights):
    folder.mkdir()
    write_training_state(folder, TrainingState("stage", 1, 1, weights, {}))
    return folder


def test_weights_carried_over_stages(tmp_path):
    lora, pooling = "backbone.lora_A", "pooling.latents"
    finished = [
        FinishedStage("0", "mntp", 1, False, save(tmp_path / "0", {lora: torch.tensor([1.0])})),
        FinishedStage(
            "1", "contrastive", 1, True,
            save(tmp_path / "1", {pooling: torch.tensor([2.0]), lora: torch.tensor([2.0])}),
        ),
        FinishedStage("2", "contrastive", 1, False, save(tmp_path / "2", {lora: torch.tensor([3.0])})),
    ]  # fmt: skip

    def starting(stages, merges_adapters):
        return as_numbers(starting_weights(finished[:stages], merges_adapters=merges_adapters))

    assert starting(0, False) == {}
    assert starting(1, True) == {}
    assert starting(2, False) == {lora: 2.0, pooling: 2.0}
    assert starting(3, True) == {pooling: 2.0}
    assert as_numbers(carried_weights(finished)) == {lora: 3.0, pooling: 2.0}


def as_numbers(weights):
    return {name: float(value) for name, value in weights.items()}


def test_a_merged_base_computes_what_base_and_adapters_did(tmp_path, tiny_base):
    spec = ModelSpec.of(recipe(tiny_base), tiny_base)
    trained = spec.build(torch.float32).eval()
    weights = trainable_weights(trained)
    generator = torch.Generator().manual_seed(3)
    weights = {name: torch.randn(value.shape, generator=generator) * 0.1 for name, value in weights.items()}
    load_trainable_weights(trained, weights, "test")
    finished = [FinishedStage("0", "contrastive", 1, False, save(tmp_path / "0", weights))]
    merged = merge_into_base(spec, finished, tmp_path / "base")
    assert (merged.base, merged.original_base) == (tmp_path / "base", tiny_base)
    again = merged.build(torch.float32).eval()
    heads = {name: value for name, value in weights.items() if name.startswith("pooling.")}
    load_trainable_weights(again, trainable_weights(again) | heads, "test")
    stream = stream_spec(tmp_path, tiny_base, stage())
    [batch] = local_batches(stream, start=0, stop=1)
    torch.testing.assert_close(again(batch.packed), trained(batch.packed), atol=1e-6, rtol=1e-5)
    assert merge_into_base(spec, [], tmp_path / "base") == merged  # kept as it is


def test_adapters_that_nobody_trained_cannot_be_merged(tmp_path, tiny_base):
    with pytest.raises(CheckpointError, match="no trained adapters to merge into"):
        merge_into_base(ModelSpec.of(recipe(tiny_base), tiny_base), [], tmp_path / "base")
