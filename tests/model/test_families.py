"""Every supported architecture: really bidirectional, packed like padded, window removed."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from rayembed.contract import Contract
from rayembed.contract.packing import pack_ids
from rayembed.engine.engine import Engine
from rayembed.model.backbone import MODEL_CLASSES, load_backbone
from rayembed.model.checkpoint import save_model
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.pooling import LatentPoolingConfig
from tests.tiny import make_tokenizer

SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
# A window of 2 tokens that must not survive; Qwen applies it from layer 1 on.
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1, "head_dim": 8}
FAMILIES = {
    "mistral": (MistralModel, MistralConfig(**SIZES, sliding_window=2)),
    "llama": (LlamaModel, LlamaConfig(**SIZES)),
    "qwen2": (Qwen2Model, Qwen2Config(**SIZES, **QWEN_WINDOW)),
    "qwen3": (Qwen3Model, Qwen3Config(**SIZES, **QWEN_WINDOW)),
}
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
LAST_TOKEN_FLIPPED = [[*TEXTS[0][:-1], 99], TEXTS[1]]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    model_class, config = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_()
            elif parameter.ndim == 2:
                parameter.mul_(6)
    model.save_pretrained(folder)
    return folder


def packed(model, texts):
    batch = pack_ids(texts, [0] * len(texts))
    states = model(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.position_ids_T[None],
        use_cache=False,
        packed_lengths=batch.lengths,
    ).last_hidden_state[0]
    return states[: batch.num_tokens].split(list(batch.lengths.texts))


def padded(model, texts):
    """transformers' own path with an attention mask over right padding."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    model.set_attn_implementation(implementation)
    return [states[index, : len(text)] for index, text in enumerate(texts)]


def test_every_supported_architecture_is_tested():
    assert set(FAMILIES) == set(MODEL_CLASSES)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@torch.no_grad()
def test_packed_equals_padded(folder, attention):
    model = load_backbone(folder, attention=attention)
    for ours, reference in zip(packed(model, TEXTS), padded(model, TEXTS), strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compute", [packed, padded])
@pytest.mark.parametrize(("attention", "reaches"), [("bidirectional", True), ("causal", False)])
@torch.no_grad()
def test_last_token_reaches_the_first_beyond_any_window(folder, compute, attention, reaches):
    model = load_backbone(folder, attention=attention)
    before, after = (compute(model, texts)[0][0] for texts in (TEXTS, LAST_TOKEN_FLIPPED))
    assert ((before - after).abs().max() > 1e-3) == reaches


@torch.no_grad()
def test_cut_and_checkpoint_round_trip(folder, tmp_path):
    torch.manual_seed(0)
    backbone = load_backbone(folder, layers=2)
    assert len(backbone.layers) == 2
    config = ModelConfig(
        pooling=LatentPoolingConfig(num_latents=4, num_heads=2, head_width=8, init="published")
    )
    embedder = EmbeddingModel(backbone, config).eval()
    save_model(tmp_path / "model", embedder, make_tokenizer(), Contract())
    engine = Engine.load(tmp_path / "model", precision="fp32")
    tokenized = engine.tokenize(["some text", "b"])
    expected = embedder(pack_ids(tokenized.input_ids, tokenized.pool_starts))
    torch.testing.assert_close(torch.tensor(engine.encode_tokens(tokenized)), expected, atol=1e-5, rtol=0)
