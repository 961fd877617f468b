"""What a replica makes of the settings of its model: an engine, warm before the first request."""

import shutil

import pytest
import torch

from rayembed.contract import Contract
from rayembed.model.base_model import save_untrained
from rayembed.serving.config import ServeConfig
from rayembed.serving.replica import EmbeddingReplica, load_engine
from tests.serving.fakes import FakeEngine


@pytest.fixture(scope="module")
def load(tiny_base, tmp_path_factory):
    """The engine of a model of two layers under settings given as text, as on the command line."""
    checkpoint = tmp_path_factory.mktemp("replica") / "model"
    save_untrained(tiny_base, checkpoint, Contract(max_length=64))
    return lambda **settings: load_engine(ServeConfig.parse({"checkpoint": str(checkpoint), **settings}))


def test_first_layers_in_fp32(load):
    first, second = load(precision="bf16", fp32_layers="1")._embedder.backbone.layers
    assert first.mlp.up_proj.weight.dtype == torch.float32
    assert second.mlp.up_proj.weight.dtype == torch.bfloat16


def test_weights_in_8_bits(load):
    pytest.importorskip("torchao", reason="needs the package torchao")
    engine = load(precision="fp32", quantization="fp8")
    assert "float8" in str(engine._embedder.backbone.layers[0].mlp.up_proj.weight).lower()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_kernels(load):
    compiled, plain = (load(compiled=value)._embedder.backbone.layers[0].mlp for value in ("true", "false"))
    assert plain._compiled_call_impl is None
    assert compiled._compiled_call_impl is not None


def test_torch_alone(load):
    pytest.importorskip("openvino", reason="needs the package openvino")
    assert load(precision="fp32")._openvino is not None
    assert load(precision="fp32", backend="torch")._openvino is None


@pytest.mark.parametrize(
    ("settings", "longest"),
    [({}, [8] * 5), ({"max_length": 4}, [4] * 10), ({"token_budget": 5}, [5])],
)
def test_first_passes_are_a_short_text_with_each_adapter_and_a_full_budget(tmp_path, settings, longest):
    """Texts of up to 8 tokens, 40 in a pass; the known text has more than 8."""
    engine = FakeEngine()
    adapter = {"adapter": str(tmp_path), "model_name": "legal"}
    config = ServeConfig.parse(
        {"checkpoint": "unused", "token_budget": 40, "adapters": [adapter], **settings}
    )
    EmbeddingReplica(config, lambda _: engine)
    assert engine.batches == [[8], [8], longest]
    assert engine.adapters == ["", "legal", ""]
