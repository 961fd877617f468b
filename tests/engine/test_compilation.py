import shutil

import numpy as np
import pytest
import torch

from rayembed.engine.engine import Engine

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and shutil.which("g++") is None, reason="needs a C++ compiler"
)
FEW, MANY = ["a", "b c"], [f"text {number} " + "x" * number for number in range(40)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_kernels_give_the_same_vectors_for_rows_of_any_length(checkpoint, precision):
    plain = Engine.load(checkpoint, precision=precision)
    compiled = Engine.load(checkpoint, precision=precision, compiled=True)
    torch._dynamo.utils.counters.clear()
    for texts in (FEW, MANY):
        agreement = (plain.encode(texts).vectors * compiled.encode(texts).vectors).sum(axis=1)
        np.testing.assert_allclose(agreement, 1, atol=1e-5 if precision == "fp32" else 1e-3)
    # Two kinds of norm in bf16 (residual and final) and the feed-forward network; shared by layers and sizes.
    assert 2 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
