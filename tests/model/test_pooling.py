"""Every pooling head against straight tensor algebra, in value and gradient."""

import pytest
import torch

from rayembed.contract.packing import PackedLengths, pack_ids, split_packed
from rayembed.model.backbone import prepare_backbone
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.pooling import (
    EosPoolingConfig,
    LatentPoolingConfig,
    MeanPoolingConfig,
    MultiLayerPoolingConfig,
    SelfAttentionPoolingConfig,
    WeightedMeanPoolingConfig,
)
from rayembed.model.pooling.blocks import CrossAttention
from tests.host_waits import RefuseHostWaits
from tests.model import reference
from tests.tiny import make_backbone

WIDTH = 12
LAYERS = 3
LENGTHS = (3, 2, 1)
PACKED = PackedLengths.of(LENGTHS)
TEXT_INDEX = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))
SMALL_BLOCK = {"num_heads": 2, "head_width": 5, "feedforward_multiplier": 2}


def weighted_mean(states):
    weights = [position / sum(range(1, len(states) + 1)) for position in range(1, len(states) + 1)]
    return sum(weight * state for weight, state in zip(weights, states, strict=True))


CASES = [
    (MeanPoolingConfig(), lambda states, _: states.mean(0)),
    (WeightedMeanPoolingConfig(), lambda states, _: weighted_mean(states)),
    (EosPoolingConfig(), lambda states, _: states[-1]),
    (
        LatentPoolingConfig(num_latents=6, init="published", **SMALL_BLOCK),
        lambda states, weights: reference.latent_block(states, weights, heads=2).mean(0),
    ),
    (
        SelfAttentionPoolingConfig(init="published", **SMALL_BLOCK),
        lambda states, weights: reference.self_attention_block(states, weights, heads=2).mean(0),
    ),
]


def check_gradients(ours, wanted, inputs):
    weight = torch.randn_like(ours)
    gradients = (torch.autograd.grad((vectors * weight).sum(), inputs) for vectors in (ours, wanted))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def randomised(config):
    torch.manual_seed(0)
    head = config.build(WIDTH, LAYERS)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head, dict(head.named_parameters())


@pytest.mark.parametrize(("config", "compute"), CASES, ids=lambda value: getattr(value, "type", ""))
def test_head_equals_its_definition(config, compute):
    head, weights = randomised(config)
    states = torch.randn(len(TEXT_INDEX), WIDTH, requires_grad=True)
    ours = head(states, TEXT_INDEX, PACKED)
    wanted = torch.stack([compute(text, weights) for text in states.split(LENGTHS)])
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)
    check_gradients(ours, wanted, [states, *weights.values()])


def test_multi_layer_head_equals_its_definition():
    head, weights = randomised(MultiLayerPoolingConfig(num_latents=6, **SMALL_BLOCK))
    layers = [torch.randn(len(TEXT_INDEX), WIDTH, requires_grad=True) for _ in range(LAYERS)]
    ours = head(layers, TEXT_INDEX, PACKED)
    texts = zip(*(states.split(LENGTHS) for states in layers), strict=True)
    wanted = torch.stack([reference.multi_layer_vector(text, weights, heads=2) for text in texts])
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)
    check_gradients(ours, wanted, [*layers, *weights.values()])


def test_multi_layer_head_gets_the_output_of_every_layer_and_the_final_norm():
    backbone = prepare_backbone(make_backbone(), "bidirectional")
    embedder = EmbeddingModel(
        backbone, ModelConfig(pooling=MultiLayerPoolingConfig(num_latents=4, **SMALL_BLOCK))
    )
    seen, layers = [], []
    embedder.pooling.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    for module in (backbone.layers[0], backbone.norm):
        module.register_forward_hook(lambda _, __, output: layers.append(output))
    with torch.no_grad():
        embedder(pack_ids([[5, 6, 7]], [1]))
    assert len(seen) == len(layers) == 2
    for got, wanted in zip(seen, layers, strict=True):
        torch.testing.assert_close(got, wanted[0, 1:])


@pytest.mark.parametrize("config", [case[0] for case in CASES] + [MultiLayerPoolingConfig(num_latents=4)])
def test_vectors_come_back_in_the_order_given_with_unit_length(config):
    torch.manual_seed(0)
    embedder = EmbeddingModel(prepare_backbone(make_backbone(), "bidirectional"), ModelConfig(pooling=config))
    texts, starts = [[5, 6], [6, 7, 8], [9, 10, 11]], [1, 0, 2]
    with torch.no_grad():
        together = embedder(pack_ids(texts, starts))
        alone = [embedder(pack_ids([text], [start])) for text, start in zip(texts, starts, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("config", [case[0] for case in CASES] + [MultiLayerPoolingConfig(num_latents=4)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_pass_waits_for_the_device(config, checkpointing):
    embedder = EmbeddingModel(prepare_backbone(make_backbone(), "bidirectional"), ModelConfig(pooling=config))
    embedder.checkpoints_pooling = checkpointing
    batch = pack_ids([[5, 6, 5, 6], [6, 7, 8], [9, 10, 11]], [1, 0, 2], multiple=16)
    with RefuseHostWaits():
        for part in (batch, *split_packed(batch, 4)):
            embedder(part)[:, 0].sum().backward()
        with torch.no_grad():
            embedder.eval()(batch)


def test_waiting_for_the_device_is_noticed():
    states = torch.ones(3)
    for waits in (lambda: states[states > 0], lambda: states[0].item(), lambda: torch.bincount(states.int())):
        with RefuseHostWaits(), pytest.raises(AssertionError, match="makes the host wait"):
            waits()


@pytest.mark.parametrize("config", [LatentPoolingConfig(num_latents=4), SelfAttentionPoolingConfig()])
def test_residual_start_is_mean_pooling(config):
    states = torch.randn(len(TEXT_INDEX), WIDTH)
    mean = MeanPoolingConfig().build(WIDTH, LAYERS)(states, TEXT_INDEX, PACKED)
    torch.testing.assert_close(config.build(WIDTH, LAYERS)(states, TEXT_INDEX, PACKED), mean)


@pytest.mark.parametrize("config", [LatentPoolingConfig(), LatentPoolingConfig.scaled(4096, 32)])
def test_published_sizes(config):
    with torch.device("meta"):
        head = config.build(hidden_size=4096, num_layers=32)
    assert sum(parameter.numel() for parameter in head.parameters()) == 740_356_096
    assert len(head.state_dict()) == 14


# Width, depth and parameters of the backbone without its head.
BACKBONES = {
    "Mistral-7B": (4096, 32, 7_110_660_096),
    "Llama-3.2-1B": (2048, 16, 1_235_814_400),
    "SmolLM2-360M": (960, 32, 361_821_120),
    "SmolLM2-135M": (576, 30, 134_515_008),
    "four layers of SmolLM2-135M": (576, 4, 42_471_360),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_scaling_rule_keeps_the_share_of_the_head(name):
    width, depth, backbone_size = BACKBONES[name]
    with torch.device("meta"):
        head = LatentPoolingConfig.scaled(width, depth).build(width, depth)
    size = sum(parameter.numel() for parameter in head.parameters())
    assert 0.05 < size / (size + backbone_size) < 0.105


def make_latent_head(width=64, latents=10, heads=3, head_width=24, dtype=torch.float64):
    """Weights of every kind, biases and norms among them, are not what they start from."""
    torch.manual_seed(0)
    config = LatentPoolingConfig(num_latents=latents, num_heads=heads, head_width=head_width)
    head = config.build(width, 1).to(dtype)
    for name, parameter in head.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=width**-0.5)
    return head


def plain_states(head, states):
    """States behind the latent block whose latents are not folded."""
    attend, transform = head.cross_attend_blocks
    attended = attend.fn.attend_plainly(
        attend.norm(states).unsqueeze(0), attend.norm_context(head.latents).unsqueeze(0)
    )
    states = states + attended.squeeze(0)
    return states + transform(states)


def count_folds(head, monkeypatch):
    attention, folds = head.cross_attend_blocks[0].fn, []
    fold = attention.fold
    monkeypatch.setattr(attention, "fold", lambda context: folds.append(1) or fold(context))
    return folds


@pytest.mark.parametrize("tokens", [1, 200])
def test_folded_latents_equal_plain_attention_in_value_and_gradient(tokens, monkeypatch):
    head = make_latent_head().train()
    folds = count_folds(head, monkeypatch)
    states = torch.randn(tokens, 64, dtype=torch.float64, requires_grad=True)
    inputs = [states, *head.parameters()]
    ours, plain = head.token_states(states), plain_states(head, states)
    assert len(folds) == (tokens > 1)
    torch.testing.assert_close(ours, plain, atol=1e-12, rtol=1e-12)
    weight = torch.randn_like(plain)
    for got, wanted in zip(
        *(torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-11, rtol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(head.eval().token_states(states), plain, atol=1e-12, rtol=1e-12)


@pytest.mark.slow
def test_folded_latents_equal_plain_attention_at_published_widths():
    """One of NV-Embed's 8 heads and 128 of its 512 latents: all are alike, and the whole takes 9 GB."""
    torch.manual_seed(0)
    attention = CrossAttention(4096, num_heads=1, head_width=4096).double()
    queries = torch.randn(1, 2, 4096, dtype=torch.float64, requires_grad=True)
    latents = torch.randn(1, 128, 4096, dtype=torch.float64, requires_grad=True)
    inputs = [queries, latents, *attention.parameters()]
    folded = attention.read(queries, attention.fold(latents[0]))
    plain = attention.attend_plainly(queries, latents)
    torch.testing.assert_close(folded, plain, atol=1e-13, rtol=1e-12)
    for got, wanted in zip(
        *(torch.autograd.grad(out.square().sum(), inputs) for out in (folded, plain)), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-11)


def test_folding_pays_from_about_500_tokens_at_published_sizes():
    with torch.device("meta"):
        assert CrossAttention(4096, 8, 4096).folding_pays_from(512) == 512
        assert CrossAttention(4096, 8, 16).folding_pays_from(512) == float("inf")


def test_latents_are_folded_once_until_a_weight_changes(monkeypatch):
    head = make_latent_head().eval()
    folds = count_folds(head, monkeypatch)
    states = torch.randn(3, 64, dtype=torch.float64)

    def equal_to_plain():
        ours, plain = head.token_states(states), plain_states(head, states)
        return torch.allclose(ours.double(), plain.double(), atol=1e-5)

    with torch.no_grad():
        assert equal_to_plain()
        assert equal_to_plain()
        assert len(folds) == 1
        for parameter in (head.latents, head.cross_attend_blocks[0].fn.to_out.weight):
            parameter.add_(1.0)
            assert equal_to_plain()
        assert len(folds) == 3
        head.load_state_dict(make_latent_head().state_dict())
        assert equal_to_plain()
        # As an optimizer of DeepSpeed does, past the counter of versions.
        head.train()
        head.latents.data.add_(1.0)
        head.eval()
        assert equal_to_plain()
        states = states.float()
        head.float()
        assert equal_to_plain()
    assert len(folds) == 6


def test_heads_that_folding_makes_slower_stay_plain(monkeypatch):
    head = make_latent_head(latents=40, head_width=2).eval()
    folds = count_folds(head, monkeypatch)
    states = torch.randn(500, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(head.token_states(states), plain_states(head, states))
    assert not folds
