"""The whole model against an independent derivation, and the mask properties of NV-Embed."""

import pytest
import torch

from rayembed.contract.packing import PackedLengths, pack_ids
from rayembed.model.backbone import prepare_backbone
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.pooling import LatentPoolingConfig, MeanPoolingConfig
from tests.model.reference import decoder_states, nv_embed_vector
from tests.tiny import make_backbone

HEADS = 2
TEXTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17, 18, 19], [20]]
POOL_STARTS = [3, 0, 0, 0]


def make_model(attention="bidirectional", pooling=None):
    """Random model whose norms and biases are not their usual ones and zeros."""
    torch.manual_seed(3)
    pooling = pooling or LatentPoolingConfig(num_latents=6, num_heads=HEADS, head_width=24, init="published")
    embedder = EmbeddingModel(
        prepare_backbone(make_backbone(), attention), ModelConfig(attention=attention, pooling=pooling)
    )
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif name.startswith("backbone.layers"):
                parameter.mul_(8)
    return embedder


def reference_vectors(embedder, texts, pool_starts):
    backbone = dict(embedder.backbone.named_parameters())
    head = dict(embedder.pooling.named_parameters())
    return torch.stack(
        [
            nv_embed_vector(ids, start, backbone, head, embedder.backbone.config, HEADS)
            for ids, start in zip(texts, pool_starts, strict=True)
        ]
    )


def test_the_whole_model_agrees_in_value_and_gradient():
    embedder = make_model()
    ours = embedder(pack_ids(TEXTS, POOL_STARTS))
    reference = reference_vectors(embedder, TEXTS, POOL_STARTS)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4))
    names, parameters = zip(*embedder.named_parameters(), strict=True)
    gradients = (torch.autograd.grad((vectors * weight).sum(), parameters) for vectors in (ours, reference))
    for name, got, wanted in zip(names, *gradients, strict=True):
        scale = wanted.abs().max().clamp(min=1)
        torch.testing.assert_close(
            got / scale, wanted / scale, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert wanted.abs().max() > 1e-6, f"{name} has no gradient, so the comparison says nothing"


def test_causal_decoder_agrees_too():
    embedder = make_model("causal", MeanPoolingConfig())
    backbone = dict(embedder.backbone.named_parameters())
    states = decoder_states(TEXTS[0], backbone, embedder.backbone.config, causal=True)
    with torch.no_grad():
        ours = embedder(pack_ids(TEXTS[:1], [0]))[0]
    torch.testing.assert_close(ours, torch.nn.functional.normalize(states.mean(0), dim=0), atol=1e-5, rtol=0)


def test_tokens_ask_and_latents_answer():
    """As many states come out as tokens went in, and a token's state depends on no other token."""
    block = make_model().pooling
    states = torch.randn(7, 32)
    with torch.no_grad():
        out = block.token_states(states)
        assert out.shape == states.shape
        assert len(block.latents) == 6
        torch.testing.assert_close(block.token_states(states[2:3]), out[2:3], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("company", [[], [[30] * 9], [[30, 31]] * 3])
def test_company_in_a_batch_never_changes_a_vector(company):
    embedder = make_model()
    with torch.no_grad():
        alone = embedder(pack_ids(TEXTS[:1], [3]))[0]
        together = embedder(pack_ids([*company, TEXTS[0]], [*(0 for _ in company), 3]))[-1]
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_unpooled_tokens_change_the_vector_only_through_attention():
    embedder = make_model()
    changed = [40, 41, 42, *TEXTS[0][3:]]
    with torch.no_grad():
        one, other = embedder(pack_ids([TEXTS[0], changed], [3, 3]))
        assert (one - other).abs().max() > 1e-3
        # Without attention between tokens the pooled positions cannot know of the instruction.
        for layer in embedder.backbone.layers:
            layer.self_attn.o_proj.weight.zero_()
        one, other = embedder(pack_ids([TEXTS[0], changed], [3, 3]))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_last_token_reaches_the_vector_of_the_first_position():
    """Pool the first position only: its state must know the last token, and only without a causal mask."""
    for attention, reaches in (("bidirectional", True), ("causal", False)):
        embedder = make_model(attention, MeanPoolingConfig())
        first, last_changed = (
            embedder.backbone(
                input_ids=torch.tensor([ids]),
                position_ids=torch.arange(6)[None],
                use_cache=False,
                packed_lengths=PackedLengths.of([6]),
            ).last_hidden_state[0, 0]
            for ids in (TEXTS[0], [*TEXTS[0][:-1], 99])
        )
        assert ((first - last_changed).abs().max() > 1e-3) == reaches
