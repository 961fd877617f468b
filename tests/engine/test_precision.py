import sys

import numpy as np
import pytest

from rayembed.common.errors import ConfigError, ResourceError
from rayembed.engine.engine import Engine
from rayembed.engine.memory import keep_freed_memory
from rayembed.model.precision import chosen_precision

TEXTS = ["a", "some longer text here", "b c", "1 2 3", "x" * 50]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_agree_with_fp32(checkpoint, precision):
    exact = Engine.load(checkpoint, precision="fp32").encode(TEXTS).vectors
    for fp32_layers in (0, 2):
        mixed = Engine.load(checkpoint, precision=precision, fp32_layers=fp32_layers).encode(TEXTS).vectors
        assert mixed.dtype == np.float32
        assert (mixed * exact).sum(axis=1).min() > 0.999
        assert not np.allclose(mixed, exact, atol=1e-6)


def test_bf16_gives_a_text_the_same_vector_in_any_batch(checkpoint):
    engine = Engine.load(checkpoint, precision="bf16", token_budget=40)
    together = engine.encode(TEXTS).vectors
    alone = np.concatenate([engine.encode([text]).vectors for text in TEXTS])
    assert (together * alone).sum(axis=1).min() > 0.999


def test_an_engine_says_its_precision_and_pooling(checkpoint):
    assert Engine.load(checkpoint, precision="bf16").precision == "bf16"
    engine = Engine.load(checkpoint)
    assert (engine.precision, engine.pooling) == (chosen_precision("auto", engine.device), "latent")
    assert engine.precision in ("bf16", "fp32")


def test_fp32_layers_belong_to_bf16(checkpoint):
    with pytest.raises(ConfigError, match="fp32_layers belongs to precision bf16"):
        Engine.load(checkpoint, precision="fp32", fp32_layers=1)
    with pytest.raises(ConfigError, match="between 0 and the model's 2 layers, not 9"):
        Engine.load(checkpoint, precision="bf16", fp32_layers=9)


@pytest.mark.parametrize(("quantization", "kind"), [("int8", "int8"), ("fp8", "float8")])
def test_weights_in_8_bits(checkpoint, quantization, kind):
    pytest.importorskip("torchao")
    exact = Engine.load(checkpoint, precision="fp32").encode(TEXTS).vectors
    small = Engine.load(checkpoint, precision="fp32", quantization=quantization)
    weight = small._embedder.backbone.layers[0].mlp.up_proj.weight
    assert kind in str(weight).lower()
    vectors = small.encode(TEXTS).vectors
    assert 0.99 < (vectors * exact).sum(axis=1).min() < 0.999999


def test_what_is_missing_is_told_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ResourceError, match=r"rayembed\[torchao\]"):
        Engine.load(tmp_path, quantization="int8")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ResourceError, match="C\\+\\+ compiler g\\+\\+ on a CPU"):
        Engine.load(tmp_path, device="cpu", compiled=True)


def test_glibc_takes_the_setting():
    import platform

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
