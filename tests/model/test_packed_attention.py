"""The packed path against transformers' own padded path, values and gradients."""

import pytest
import torch

from rayembed.model.attention import _attend_fused, _attend_plainly
from rayembed.model.backbone import prepare_backbone
from rayembed.model.packing import pack_ids
from tests.tiny import make_backbone

TEXTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 15], [16]]


def padded_states(model, texts, *, causal):
    """States of each text by the eager padded path."""
    model.config.is_causal = causal
    model.set_attn_implementation("eager")
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return [states[index, : len(text)] for index, text in enumerate(texts)]


def packed_states(model, texts, attention="bidirectional"):
    batch = pack_ids(texts, [0] * len(texts))
    prepare_backbone(model, attention)
    states = model(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.position_ids_T[None],
        use_cache=False,
        packed_lengths=batch.lengths,
    ).last_hidden_state[0]
    pieces = states.split(list(batch.lengths))
    return [pieces[position] for position in batch.order_N.tolist()]


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_packed_equals_padded_in_value_and_gradient(attention):
    model = make_backbone()
    results = []
    for compute in (
        lambda: padded_states(model, TEXTS, causal=attention == "causal"),
        lambda: packed_states(model, TEXTS, attention),
    ):
        model.zero_grad()
        states = torch.cat(compute())
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        results.append((states, [parameter.grad.clone() for parameter in model.parameters()]))
    (padded, padded_gradients), (packed, packed_gradients) = results
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
    for ours, reference in zip(packed_gradients, padded_gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


def test_last_token_reaches_the_first_only_without_the_causal_mask():
    model = make_backbone()
    changed = [[*TEXTS[0][:-1], 99], *TEXTS[1:]]
    with torch.no_grad():
        both_ways = [packed_states(model, texts)[0][0] for texts in (TEXTS, changed)]
        causal = [packed_states(model, texts, "causal")[0][0] for texts in (TEXTS, changed)]
    assert (both_ways[0] - both_ways[1]).abs().max() > 1e-3
    assert torch.equal(*causal)


def test_texts_do_not_see_each_other():
    model = make_backbone()
    with torch.no_grad():
        together = packed_states(model, TEXTS)
        alone = [packed_states(model, [text])[0] for text in TEXTS]
    for packed, single in zip(together, alone, strict=True):
        torch.testing.assert_close(packed, single, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_plain_and_fused_attention_agree_in_value_and_gradient(causal, groups):
    torch.manual_seed(0)
    tensors = [torch.randn(3, heads, 5, 8, requires_grad=True) for heads in (4, groups, groups)]
    settings = {"scaling": 0.3, "causal": causal, "dropout": 0.0}
    plain, fused = _attend_plainly(*tensors, **settings), _attend_fused(*tensors, **settings)
    torch.testing.assert_close(plain, fused, atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(plain)
    for ours, reference in zip(
        torch.autograd.grad((plain * weight).sum(), tensors),
        torch.autograd.grad((fused * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)
