"""Runs that do not fit the machine, and what is counted."""

import pytest
import torch

from rayembed.common.errors import ResourceError
from rayembed.training import preflight
from rayembed.training.model import ModelSpec
from tests.tiny import make_backbone
from tests.training.recipes import tiny_recipe as recipe


def test_a_run_that_cannot_fit_is_refused_with_both_numbers(home, tiny_base, monkeypatch):
    config = recipe(tiny_base)
    model = ModelSpec.of(config, tiny_base)
    assert preflight.check_resources(config, model, home / "run").memory > 0
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**20}))
    with pytest.raises(ResourceError, match=r"needs at least 1\.\d GiB of memory and 0\.0 GiB are free"):
        preflight.check_resources(config, model, home / "run")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 1}))
    with pytest.raises(ResourceError, match="free some or set output"):
        preflight.check_resources(config, model, home / "run")


def test_the_disk_holds_the_backbone_twice(tiny_base):
    model = ModelSpec.of(recipe(tiny_base), tiny_base)
    backbone = sum(parameter.numel() for parameter in make_backbone().parameters())
    assert preflight.Needs.of(recipe(tiny_base), model).disk > 2 * 4 * backbone


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_parameters_are_counted_without_loading_them(tiny_base, lora):
    model = ModelSpec.of(recipe(tiny_base, lora=lora), tiny_base)
    parameters = list(model.build(torch.float32).parameters())
    assert preflight.parameter_counts(model) == (
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )
