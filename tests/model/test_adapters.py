"""Adapters and pooling head are one artefact that is saved, resumed, merged and exported without loss."""

import pytest
import torch

from rayembed.common.errors import CheckpointError
from rayembed.config.run import RunConfig
from rayembed.contract.packing import pack
from rayembed.engine.engine import Engine
from rayembed.model.configuration import LoraSettings, ModelConfig
from rayembed.training.checkpoint import TrainingState, load_weights, write_training_state
from rayembed.training.handover import FinishedStage, ModelExport
from rayembed.training.model import ModelSpec, load_trainable_weights, trainable_weights

BLOCK = {"num_heads": 2, "head_width": 8}
HEADS = [
    {"type": "mean"},
    {"type": "weighted_mean"},
    {"type": "eos"},
    {"type": "latent", "num_latents": 4, **BLOCK},
    {"type": "self_attention", **BLOCK},
    {"type": "multi_layer", "num_latents": 4, **BLOCK},
]
TEXTS = ["a", "some longer text", "3 things"]


def make_config(base, pooling, attention="bidirectional", lora=True):
    blend = [{"source": "own", "weight": 1, "instruction": "Find", "in_batch_negatives": True}]
    return RunConfig(
        name="adapters",
        base_model=str(base),
        model=ModelConfig.model_validate({"attention": attention, "pooling": pooling}),
        lora=LoraSettings(rank=2, alpha=4) if lora else None,
        stages=[{"name": "one", "steps": 1, "batch_size": 2, "learning_rate": 1e-3, "blend": blend}],
    )


def as_if_trained(config, base):
    """A model whose every trainable parameter is away from its start, in evaluation mode."""
    model = ModelSpec.of(config, base).build(torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def encode(model, tokenized):
    with torch.no_grad():
        return model(pack(tokenized))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("pooling", HEADS, ids=lambda head: head["type"])
def test_save_resume_merge_and_export_keep_the_vectors(tiny_base, tmp_path, pooling, attention, lora):
    config = make_config(tiny_base, pooling, attention, lora)
    trained = as_if_trained(config, tiny_base)
    weights = trainable_weights(trained)
    own_head = {name for name in weights if name.startswith("pooling.")}
    assert own_head == {f"pooling.{name}" for name, _ in trained.pooling.named_parameters()}
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    moments = {f"exp_avg.{name}": tensor for name, tensor in weights.items()}
    write_training_state(checkpoint, TrainingState("one", 1, 1, weights, moments))

    finished = [FinishedStage.of(config.stages[0], checkpoint)]
    ModelExport.of(config).write(ModelSpec.of(config, tiny_base), finished, tmp_path / "model")
    engine = Engine.load(tmp_path / "model", precision="fp32")
    tokenized = engine.tokenize(TEXTS, "Find")
    expected = encode(trained, tokenized)
    torch.testing.assert_close(torch.tensor(engine.encode_tokens(tokenized)), expected, atol=1e-5, rtol=0)

    resumed = ModelSpec.of(config, tiny_base).build(torch.float32).eval()
    assert (encode(resumed, tokenized) - expected).abs().max() > 1e-3
    load_trainable_weights(resumed, load_weights(checkpoint), "checkpoint")
    assert torch.equal(encode(resumed, tokenized), expected)


def test_a_checkpoint_of_another_head_is_refused(tiny_base, tmp_path):
    trained = as_if_trained(make_config(tiny_base, HEADS[3]), tiny_base)
    other = ModelSpec.of(make_config(tiny_base, HEADS[4]), tiny_base).build(torch.float32)
    with pytest.raises(CheckpointError, match=r"does not fit this model: pooling\."):
        load_trainable_weights(other, trainable_weights(trained), "checkpoint")
