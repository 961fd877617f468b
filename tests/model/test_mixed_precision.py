import copy

import pytest
import torch

from rayembed.common.errors import ConfigError
from rayembed.contract.packing import pack_ids
from rayembed.model.backbone import prepare_backbone
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.mixed_precision import ResidualNorm, use_mixed_precision
from rayembed.model.pooling import LatentPoolingConfig, MeanPoolingConfig
from tests.tiny import make_backbone

TEXTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 15], [16], [40, 41, 42, 43]]
LARGE = 3000.0


def embedder_with_large_values(pooling):
    """Random model whose first layer writes one huge value and whose last layer takes it away again."""
    backbone = make_backbone(num_hidden_layers=4)
    embedder = EmbeddingModel(prepare_backbone(backbone, "bidirectional"), ModelConfig(pooling=pooling))
    for layer, sign in ((backbone.layers[0], 1.0), (backbone.layers[-1], -1.0)):
        layer.mlp.down_proj.register_forward_hook(lambda _m, _i, output, sign=sign: shifted(output, sign))
    return embedder.eval()


def shifted(output, sign):
    output = output.clone()
    output[..., 3] += sign * LARGE
    return output


def smallest_cosine(embedder, reference):
    with torch.no_grad():
        return (embedder(pack_ids(TEXTS, [0] * 5)) * reference).sum(dim=1).min().item()


@pytest.mark.parametrize(
    "pooling", [MeanPoolingConfig(), LatentPoolingConfig(num_latents=4, num_heads=2, head_width=8)]
)
def test_large_values_in_the_residual_stream_do_no_harm(pooling):
    plain = embedder_with_large_values(pooling)
    with torch.no_grad():
        reference = plain(pack_ids(TEXTS, [0] * 5))
    mixed = copy.deepcopy(plain)
    use_mixed_precision(mixed)
    assert smallest_cosine(plain.to(torch.bfloat16), reference) < 0.99, "the case is too easy"
    assert smallest_cosine(mixed, reference) > 0.999


def test_layers_in_fp32_come_closer():
    plain = embedder_with_large_values(MeanPoolingConfig())
    with torch.no_grad():
        reference = plain(pack_ids(TEXTS, [0] * 5))
    errors = []
    for layers in (0, 4):
        mixed = copy.deepcopy(plain)
        use_mixed_precision(mixed, fp32_layers=layers)
        errors.append(1 - smallest_cosine(mixed, reference))
    assert errors[1] < errors[0]
    with pytest.raises(ConfigError, match="between 0 and the model's 4 layers, not 5"):
        use_mixed_precision(plain, fp32_layers=5)


def test_norm_equals_that_of_transformers():
    original = make_backbone().norm
    torch.nn.init.normal_(original.weight)
    states = torch.randn(2, 7, 32) * 30
    ours = ResidualNorm(original, torch.float32)(states)
    torch.testing.assert_close(ours, original(states), atol=1e-5, rtol=1e-5)
