"""The packed path against transformers' own padded path, values and gradients."""

import dataclasses
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from rayembed.contract.packing import PackedLengths, pack_ids
from rayembed.model import attention
from rayembed.model.attention import _attend_fused, _attend_plainly
from rayembed.model.backbone import prepare_backbone
from rayembed.model.configuration import LoraSettings, ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.lora import attach_lora
from rayembed.model.pooling import MeanPoolingConfig
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


def packed_states(model, texts, attention="bidirectional", multiple=1):
    batch = pack_ids(texts, [0] * len(texts), multiple=multiple)
    prepare_backbone(model, attention)
    states = model(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.position_ids_T[None],
        use_cache=False,
        packed_lengths=batch.lengths,
    ).last_hidden_state[0]
    pieces = states[: batch.num_tokens].split(list(batch.lengths.texts))
    return [pieces[position] for position in batch.order_N.tolist()]


def states_and_gradients(model, compute):
    """Token states, and the gradients of a weighted sum of them with respect to all trained parameters."""
    model.zero_grad()
    states = torch.cat(compute())
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    return states, [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]


def assert_equal(ours, reference):
    torch.testing.assert_close(ours[0], reference[0], atol=1e-5, rtol=1e-5)
    for gradient, expected in zip(ours[1], reference[1], strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_packed_equals_padded_in_value_and_gradient(attention, multiple):
    model = make_backbone()
    padded = states_and_gradients(model, lambda: padded_states(model, TEXTS, causal=attention == "causal"))
    packed = states_and_gradients(model, lambda: packed_states(model, TEXTS, attention, multiple))
    assert_equal(packed, padded)


def test_activation_checkpointing_changes_nothing():
    model = make_backbone().train()
    plain = states_and_gradients(model, lambda: packed_states(model, TEXTS))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(states_and_gradients(model, lambda: packed_states(model, TEXTS)), plain)


def adapted(dropout):
    """Training backbone with adapters that are not zero."""
    model = attach_lora(make_backbone().train(), LoraSettings(rank=2, alpha=4, dropout=dropout))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_adapters_get_the_gradients_of_the_padded_path():
    model = adapted(dropout=0.0)
    padded = states_and_gradients(model, lambda: padded_states(model, TEXTS, causal=False))
    assert_equal(states_and_gradients(model, lambda: packed_states(model, TEXTS)), padded)


def test_activation_checkpointing_draws_the_same_adapter_dropout():
    model = adapted(dropout=0.3)

    def drawn(seed):
        torch.manual_seed(seed)
        return states_and_gradients(model, lambda: packed_states(model, TEXTS))

    plain, other = drawn(5), drawn(6)
    assert (plain[0] - other[0]).abs().max() > 1e-4, "dropout is off"
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(drawn(5), plain)


def test_padding_tokens_reach_no_text_and_no_gradient():
    model = make_backbone()
    batch = pack_ids(TEXTS, [0] * len(TEXTS), multiple=16)
    assert batch.lengths.padding == 4
    assert batch.num_tokens == 12
    assert batch.pooled_P.tolist() == list(range(12))
    assert batch.lengths.cumulative.tolist() == [0, 5, 8, 11, 12, 16]
    changed = dataclasses.replace(batch, input_ids_T=batch.input_ids_T.index_fill(0, torch.arange(12, 16), 9))
    embedder = EmbeddingModel(
        prepare_backbone(model, "bidirectional"), ModelConfig(pooling=MeanPoolingConfig())
    )
    with torch.no_grad():
        assert torch.equal(embedder(batch), embedder(changed))


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


def attend_rows_alone(
    query, key, value, starts, key_starts, longest, longest_key, *, scale, window_size, enable_gqa
):
    """torch's variable-length attention, computed text by text."""
    assert starts.dtype is torch.int32
    assert starts is key_starts
    assert longest == longest_key == starts.diff().max()
    pieces = [
        F.scaled_dot_product_attention(
            *(tensor[start:stop].transpose(0, 1) for tensor in (query, key, value)),
            scale=scale,
            is_causal=window_size == (-1, 0),
            enable_gqa=enable_gqa,
        ).transpose(0, 1)
        for start, stop in itertools.pairwise(starts.tolist())
    ]
    return torch.cat(pieces)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_variable_length_kernel_is_called_as_it_is_documented(monkeypatch, causal, padding):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attend_rows_alone)
    torch.manual_seed(0)
    lengths = PackedLengths.of([4, 4, 2], padding)
    tensors = [torch.randn(heads, 10 + padding, 8) for heads in (4, 2, 2)]
    settings = {"scaling": 0.3, "causal": causal}
    in_one = attention._attend_varlen(*tensors, lengths, **settings)
    grouped = attention._attend_grouped(*tensors, lengths, dropout=0.0, **settings)
    torch.testing.assert_close(in_one[:10], grouped[:10], atol=1e-6, rtol=1e-5)
    assert torch.isfinite(in_one).all()


def test_variable_length_kernel_is_for_16_bits_on_cuda_without_dropout():
    assert not attention._varlen_is_possible(torch.zeros(1, 1, 8, dtype=torch.bfloat16), 0.0)


@pytest.mark.gpu
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 16)])
def test_variable_length_kernel_agrees_with_groups_in_value_and_gradient(causal, window):
    torch.manual_seed(0)
    lengths = PackedLengths.of([70, 64, 64, 3, 1], 6).to("cuda")
    tensors = [
        torch.randn(heads, 208, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    assert attention._varlen_is_possible(tensors[0], 0.0)
    assert not attention._varlen_is_possible(tensors[0], 0.1)
    settings = {"scaling": 0.125, "causal": causal}
    mask = partial(attention._mask, window, None, torch.device("cuda"))
    results = []
    for attended in (
        attention._attend_varlen(*tensors, lengths, window=window, **settings)[:202],
        attention._attend_grouped(*tensors, lengths, mask, dropout=0.0, **settings)[:202],
    ):
        weight = torch.linspace(-1, 1, attended.numel(), device="cuda").view_as(attended).bfloat16()
        results.append((attended, *torch.autograd.grad((attended * weight).sum(), tensors)))
    for ours, reference in zip(*results, strict=True):
        assert (ours - reference).float().norm() / reference.float().norm() < 2e-2


@pytest.mark.parametrize("mask", ["none", "causal", "window", "bias"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_plain_and_fused_attention_agree_in_value_and_gradient(mask, groups):
    torch.manual_seed(0)
    tensors = [torch.randn(3, heads, 5, 8, requires_grad=True) for heads in (4, groups, groups)]
    bias = torch.randn(4, 5, 5, requires_grad=True)
    tensors += [bias] if mask == "bias" else []
    window = 1 if mask == "window" else None
    arguments = (
        *tensors[:3],
        attention._mask(window, (lambda _: bias) if mask == "bias" else None, torch.device("cpu"), False, 5),
    )
    settings = {"scaling": 0.3, "causal": mask == "causal", "dropout": 0.0}
    plain, fused = _attend_plainly(*arguments, **settings), _attend_fused(*arguments, **settings)
    torch.testing.assert_close(plain, fused, atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(plain)
    for ours, reference in zip(
        torch.autograd.grad((plain * weight).sum(), tensors),
        torch.autograd.grad((fused * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)
