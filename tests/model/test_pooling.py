"""Pooling heads against straight tensor algebra from the fact sheet of NV-Embed."""

import math

import torch

from rayembed.model.backbone import prepare_backbone
from rayembed.model.configuration import LatentPoolingConfig, MeanPoolingConfig, ModelConfig
from rayembed.model.embedder import Embedder
from rayembed.model.packing import pack_ids
from rayembed.model.pooling import build_pooling
from tests.tiny import make_backbone

WIDTH = 12
TEXT_INDEX = torch.tensor([0, 0, 0, 1, 1])


def layer_norm(values, weight, bias):
    centred = values - values.mean(-1, keepdim=True)
    return centred / (values.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * weight + bias


def reference_latent(states, weights, heads):
    """Steps 1 to 5 of the published computation, one head at a time."""
    prefix = "cross_attend_blocks.0."
    tokens = layer_norm(states, weights[prefix + "norm.weight"], weights[prefix + "norm.bias"])
    latents = layer_norm(
        weights["latents"], weights[prefix + "norm_context.weight"], weights[prefix + "norm_context.bias"]
    )
    query = tokens @ weights[prefix + "fn.to_q.weight"].T
    key_value = latents @ weights[prefix + "fn.to_kv.weight"].T
    inner = query.shape[1]
    key, value = key_value[:, :inner], key_value[:, inner:]
    width = inner // heads
    attended = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = torch.softmax(query[:, part] @ key[:, part].T / math.sqrt(width), dim=-1)
        attended.append(scores @ value[:, part])
    states = states + torch.cat(attended, dim=1) @ weights[prefix + "fn.to_out.weight"].T
    prefix = "cross_attend_blocks.1."
    normed = layer_norm(states, weights[prefix + "norm.weight"], weights[prefix + "norm.bias"])
    hidden = normed @ weights[prefix + "fn.net.0.weight"].T + weights[prefix + "fn.net.0.bias"]
    values, gates = hidden.chunk(2, dim=1)
    gelu = gates * 0.5 * (1 + torch.erf(gates / math.sqrt(2)))
    states = (
        states + (values * gelu) @ weights[prefix + "fn.net.2.weight"].T + weights[prefix + "fn.net.2.bias"]
    )
    return torch.stack([states[text == TEXT_INDEX].mean(0) for text in (0, 1)])


def test_latent_pooling_equals_the_published_computation_in_value_and_gradient():
    torch.manual_seed(0)
    head = build_pooling(
        LatentPoolingConfig(num_latents=6, num_heads=2, head_width=5, init="published"), hidden_size=WIDTH
    )
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    states = torch.randn(len(TEXT_INDEX), WIDTH, requires_grad=True)
    ours = head(states, TEXT_INDEX, 2)
    reference = reference_latent(states, dict(head.named_parameters()), heads=2)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    inputs = [states, *head.parameters()]
    weight = torch.randn_like(ours)
    for got, wanted in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((reference * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_published_width_needs_no_settings():
    with torch.device("meta"):
        head = build_pooling(LatentPoolingConfig(), hidden_size=4096)
    assert sum(parameter.numel() for parameter in head.parameters()) == 740_356_096
    assert len(head.state_dict()) == 14


def test_residual_start_is_mean_pooling():
    states = torch.randn(len(TEXT_INDEX), WIDTH)
    latent = build_pooling(LatentPoolingConfig(num_latents=4, num_heads=2, head_width=3), WIDTH)
    mean = build_pooling(MeanPoolingConfig(), WIDTH)
    torch.testing.assert_close(latent(states, TEXT_INDEX, 2), mean(states, TEXT_INDEX, 2))


def test_instruction_changes_the_vector_though_it_is_not_pooled():
    embedder = Embedder(
        prepare_backbone(make_backbone(), "bidirectional"), ModelConfig(pooling=MeanPoolingConfig())
    )
    with torch.no_grad():
        one, other, bare = (
            embedder(pack_ids([[*instruction, 5, 6, 7]], [len(instruction)]))
            for instruction in ([20, 21], [22, 23], [])
        )
    assert (one - other).abs().max() > 1e-3
    assert (one - bare).abs().max() > 1e-3


def test_vectors_come_back_in_the_order_given_with_unit_length():
    embedder = Embedder(
        prepare_backbone(make_backbone(), "bidirectional"), ModelConfig(pooling=MeanPoolingConfig())
    )
    texts = [[5], [6, 7, 8], [9, 10]]
    with torch.no_grad():
        together = embedder(pack_ids(texts, [0, 0, 0]))
        alone = torch.cat([embedder(pack_ids([text], [0])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
