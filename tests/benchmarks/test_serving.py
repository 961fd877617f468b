"""The number format in which the endpoint and its peers are compared."""

from pathlib import Path

import pytest

from rayembed.model import precision

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(("native_bf16", "format"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_what_the_engine_takes_on_this_processor(monkeypatch, native_bf16, format):
    monkeypatch.syspath_prepend(FOLDER)
    from serving import precision_here

    monkeypatch.setattr(precision, "_has_native_bf16", lambda device: native_bf16)
    assert precision_here("auto") == format
    assert precision_here("fp32") == "fp32"
