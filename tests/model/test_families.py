"""Every supported architecture, packed like padded; decoders really bidirectional, their window removed."""

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaModel,
    Ministral3Config,
    Ministral3Model,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.contract import Contract
from rayembed.contract.packing import pack_ids
from rayembed.engine.engine import Engine
from rayembed.model.backbone import DECODERS, ENCODERS, layers_of, load_backbone, most_positions
from rayembed.model.checkpoint import save_model
from rayembed.model.configuration import LoraSettings, ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.lora import attach_lora, merge_lora
from rayembed.model.mixed_precision import use_mixed_precision
from rayembed.model.pooling import ClsPoolingConfig, LatentPoolingConfig, MeanPoolingConfig
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
# Windows that do survive, next to a layer with a full view.
GEMMA = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 4, "head_dim": 16, "query_pre_attn_scalar": 24,
}  # fmt: skip
# Queries from position 4 on are scaled by a factor that grows.
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 4,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5,
}  # fmt: skip
MINISTRAL = {"head_dim": 8, "sliding_window": 2, "rope_parameters": YARN}
FAMILIES = {
    "mistral": (MistralModel, MistralConfig(**SIZES, sliding_window=2)),
    "llama": (LlamaModel, LlamaConfig(**SIZES)),
    "qwen2": (Qwen2Model, Qwen2Config(**SIZES, **QWEN_WINDOW)),
    "qwen3": (Qwen3Model, Qwen3Config(**SIZES, **QWEN_WINDOW)),
    "gemma3_text": (Gemma3TextModel, Gemma3TextConfig(**SIZES, **GEMMA)),
    "ministral3": (
        Ministral3Model,
        Ministral3Config(**SIZES, **MINISTRAL),
    ),
}
ENCODER_SIZES = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
ROBERTA_SIZES = ENCODER_SIZES | {"pad_token_id": 3, "max_position_embeddings": 64}
MODERN = {"local_attention": 4, "global_attn_every_n_layers": 2, "pad_token_id": 0}  # a window of 2 a side
ENCODER_FAMILIES = {
    "bert": (BertModel, BertConfig(**ENCODER_SIZES)),
    "roberta": (RobertaModel, RobertaConfig(**ROBERTA_SIZES)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**ROBERTA_SIZES)),
    "mpnet": (MPNetModel, MPNetConfig(**ENCODER_SIZES)),
    "modernbert": (ModernBertModel, ModernBertConfig(**ENCODER_SIZES, **MODERN)),
}
HEADS = [
    ClsPoolingConfig(),
    MeanPoolingConfig(),
    LatentPoolingConfig(num_latents=4, num_heads=2, head_width=8),
]
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
LAST_TOKEN_FLIPPED = [[*TEXTS[0][:-1], 99], TEXTS[1]]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save_random(*FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=ENCODER_FAMILIES)
def encoder(request, tmp_path_factory):
    return save_random(*ENCODER_FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


def save_random(model_class, config, folder):
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_()
            elif parameter.ndim == 2:
                parameter.mul_(6)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
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
    assert set(FAMILIES) == set(DECODERS)
    assert set(ENCODER_FAMILIES) == set(ENCODERS)


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
    rounded = torch.tensor(Engine.load(tmp_path / "model", precision="bf16").encode_tokens(tokenized))
    assert (rounded * expected).sum(dim=1).min() > 0.98  # weights are large


def reference_states(model, texts, attention="bidirectional"):
    """transformers' own forward pass over right padding with an explicit mask."""
    width, padding = max(map(len, texts)), model.config.pad_token_id or 0
    ids = torch.tensor([text + [padding] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    if model.config.model_type in FAMILIES:
        mask = explicit_masks(mask, attention, model.config.model_type)
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return [states[index, : len(text)] for index, text in enumerate(texts)]


def explicit_masks(real, attention, family):
    """What is added to the scores (N, 1, L, L): 0 where a token is seen. Gemma's windows hold 4 tokens."""
    places = torch.arange(real.shape[1])
    before = places[:, None] - places
    causal = attention == "causal"
    seen = {"full_attention": before >= (0 if causal else -real.shape[1])}
    seen["sliding_attention"] = (before >= 0) & (before <= 3) if causal else before.abs() <= 2
    masks = {
        name: torch.where(real[:, None, None].bool() & each, 0.0, torch.finfo(torch.float32).min)
        for name, each in seen.items()
    }
    return masks if family == "gemma3_text" else masks["full_attention"]


def gradients_of(model, states):
    states = torch.cat(states)
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_encoder_equals_padded_in_values_and_gradients(encoder, checkpointing):
    assert_equal_in_values_and_gradients(encoder, "bidirectional", checkpointing)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_packed_decoder_equals_padded_in_values_and_gradients(folder, attention):
    assert_equal_in_values_and_gradients(folder, attention, checkpointing=False)


def assert_equal_in_values_and_gradients(folder, attention, checkpointing):
    texts = [list(range(5, 25)), list(range(30, 50)), [6, 7, 8, 9], [12]]
    ours = load_backbone(folder, attention=attention).eval()
    theirs = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    if checkpointing:  # needs training mode, which draws dropout
        ours.gradient_checkpointing_enable({"use_reentrant": False})
        for module in ours.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    states, wanted = packed(ours, texts), reference_states(theirs, texts, attention)
    for one, other in zip(states, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    gradients, expected = gradients_of(ours, states), gradients_of(theirs, wanted)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_encoder_checkpoints_with_every_head_and_number_format(encoder, tmp_path):
    for head in HEADS:
        torch.manual_seed(0)
        backbone = attach_lora(load_backbone(encoder, layers=2), LoraSettings(rank=2))
        assert len(layers_of(backbone)) == 2
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        embedder = EmbeddingModel(merge_lora(backbone), ModelConfig(pooling=head)).eval()
        save_model(tmp_path / "model", embedder, make_tokenizer(), Contract(pool_instruction=True))
        engine = Engine.load(tmp_path / "model", precision="fp32")
        tokenized = engine.tokenize(["some text that is long", "b"])
        expected = embedder(pack_ids(tokenized.input_ids, tokenized.pool_starts))
        torch.testing.assert_close(torch.tensor(engine.encode_tokens(tokenized)), expected, atol=1e-5, rtol=0)
        rounded = torch.tensor(Engine.load(tmp_path / "model", precision="bf16").encode_tokens(tokenized))
        assert (rounded * expected).sum(dim=1).min() > 0.98  # weights are large
    with pytest.raises(ConfigError, match="fp32_layers is 1, and the model is an encoder"):
        use_mixed_precision(embedder, fp32_layers=1)


def test_what_an_encoder_cannot_do_is_refused(encoder):
    with pytest.raises(CheckpointError, match=r"is an encoder .* set model.attention to bidirectional"):
        load_backbone(encoder, attention="causal")
    assert most_positions(encoder) in {"roberta": (60,), "xlm-roberta": (60,), "modernbert": (None,)}.get(
        load_backbone(encoder).config.model_type, (126, 128)
    )
