"""Short passes by OpenVINO have the states that torch computes."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from rayembed.contract.packing import pack_ids
from rayembed.engine.engine import Engine
from rayembed.engine.openvino import SHORT_PASS, OpenVinoDecoder, _padded_groups
from rayembed.model.backbone import prepare_backbone
from tests.tiny import make_backbone

SIZES = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
FAMILIES = {
    "mistral": make_backbone,
    "mistral without groups": lambda: make_backbone(num_key_value_heads=4),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"})),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SIZES)),
}


@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        ((40, 39, 38, 12, 11), [(40, 39, 38), (12, 11)]),
        ((7, 7, 7), [(7, 7, 7)]),
        ((9,), [(9,)]),
        ((8, 7), [(8, 7)]),
        ((8, 5), [(8,), (5,)]),
    ],
)
def test_neighbours_of_similar_length_are_padded_together(texts, groups):
    assert list(_padded_groups(texts)) == groups


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_states_are_those_of_torch(family, attention):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    backbone = prepare_backbone(FAMILIES[family]().eval(), attention)
    for name, parameter in backbone.named_parameters():
        if "bias" in name or "norm" in name:
            parameter.normal_(mean=1.0, std=0.2)
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 40, 12, 39, 11, 1]
    ids = [torch.randint(258, (length,), generator=generator).tolist() for length in lengths]
    batch = pack_ids(ids, [0, 5, 0, 0, 2, 0], multiple=16)
    wanted = backbone(
        input_ids=batch.input_ids_T.unsqueeze(0),
        position_ids=batch.position_ids_T.unsqueeze(0),
        use_cache=False,
        packed_lengths=batch.lengths,
    ).last_hidden_state[0][batch.pooled_P]
    torch.testing.assert_close(OpenVinoDecoder(backbone, torch.float32)(batch), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vectors_of_short_passes_are_those_of_long_ones(checkpoint, precision):
    pytest.importorskip("openvino")
    engines = [Engine.load(checkpoint, precision=precision, backend=backend) for backend in ("auto", "torch")]
    texts = ["a", "some longer text here", "b c", "x" * 60]
    ours, torchs = (engine.encode(texts, instruction="Find").vectors for engine in engines)
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    np.testing.assert_allclose(ours, torchs, atol=tolerance)


def test_long_passes_of_many_lengths_and_adapters_stay_with_torch(checkpoint):
    engine = Engine.load(checkpoint, precision="fp32", backend="torch")
    passes = []

    class Decoder(OpenVinoDecoder):
        def __init__(self):
            pass

        def __call__(self, batch):
            passes.append(batch.num_tokens)
            return torch.zeros(len(batch.pooled_P), 32)

    engine._openvino = Decoder()
    engine.encode(["short"])
    engine.encode(["x" * length for length in range(30, 60)])
    engine.encode(["x" * 60 + str(n) for n in range(10, SHORT_PASS // 60 + 12)])
    engine._adapters.chosen = "some"
    engine.forward(next(engine.packed_batches(engine.tokenize(["short"])))[1])
    assert passes[0] == 6
    assert len(passes) == 2
    assert passes[1] > SHORT_PASS
