"""What a resumed stage does before its first step."""

from types import SimpleNamespace

import pytest
import torch

from rayembed.config.training import TrainingConfig
from rayembed.training import deepspeed, start
from rayembed.training.mntp import MaskedLanguageModel, MaskedStep
from rayembed.training.step import ContrastiveStep
from tests.training.models import Unwrapped, make_embedder
from tests.training.recipes import tiny_recipe
from tests.training.sources import stage


def contrastive(tiny_base):
    training = TrainingConfig(tokens_per_chunk=8)
    here = SimpleNamespace(settings=stage(), training=training)
    return make_embedder(lora=True), ContrastiveStep(here, torch.device("cpu"))


def masked(tiny_base):
    embedder = make_embedder(lora=True)
    vocabulary = embedder.backbone.config.vocab_size
    settings = tiny_recipe(tiny_base).stages[0].model_copy(update={"loss": ()})
    settings = type(settings).model_validate(settings.model_dump() | {"kind": "mntp", "loss": ()})
    here = SimpleNamespace(
        settings=settings,
        training=TrainingConfig(tokens_per_chunk=8),
        stream=SimpleNamespace(tokenizer=tiny_base),
        seed=0,
    )
    model = MaskedLanguageModel(embedder.backbone, torch.randn(vocabulary, embedder.dimensions))
    return model, MaskedStep(here, torch.device("cpu"))


@pytest.mark.parametrize("make", [contrastive, masked])
def test_priming_takes_one_short_pass_through_every_weight(tiny_base, monkeypatch, make):
    model, step = make(tiny_base)
    tokens = []
    model.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].num_tokens))
    wrapped = Unwrapped(model.train())
    for name in ("write_weights", "write_moments", "set_learning_rate"):
        monkeypatch.setattr(deepspeed, name, lambda *_: None)
    wrapped.step = lambda: None
    start.restore_moments(wrapped, SimpleNamespace(weights={}, moments={}, optimizer_steps=1), step)
    assert len(tokens) == 1
    assert tokens[0] <= 2
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients
    assert all(grad is not None and not grad.any() for grad in gradients.values())
