"""Runs that do not fit, and what is counted."""

from dataclasses import replace

import pytest
import torch

from rayembed.common.errors import ResourceError
from rayembed.contract.packing import pack_ids
from rayembed.model.pooling import LatentPoolingConfig, MeanPoolingConfig
from rayembed.training import preflight
from rayembed.training.model import ModelSpec, prepare_for_stage
from rayembed.training.preflight import GIBIBYTE, memory_of_worker
from rayembed.training.resources import Utilization
from tests.model.test_families import ENCODER_FAMILIES, save_random
from tests.tiny import make_backbone
from tests.training.recipes import tiny_recipe as recipe


def test_a_worker_refuses_what_cannot_fit_its_node_with_both_numbers(tiny_base, monkeypatch):
    training, model = recipe(tiny_base).training, ModelSpec.of(recipe(tiny_base), tiny_base)
    cpu = torch.device("cpu")
    preflight.check_memory(model, training, cpu)
    memory = type("Memory", (), {"available": 1.5 * GIBIBYTE})
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: memory)
    preflight.check_memory(model, training, cpu)
    with pytest.raises(ResourceError, match=r"needs at least 2\.\d GiB .* this node has 1\.5 GiB free"):
        preflight.check_memory(model, training, cpu, neighbours=2)


def test_a_worker_refuses_what_cannot_fit_its_gpu(tiny_base, monkeypatch):
    config = recipe(tiny_base)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**20, 2**30))
    with pytest.raises(ResourceError, match=r"this GPU has 0\.0 GiB free"):
        preflight.check_memory(ModelSpec.of(config, tiny_base), config.training, torch.device("cuda"))


def test_a_full_disk_is_told_before_training(home, tiny_base, monkeypatch):
    config = recipe(tiny_base)
    model = ModelSpec.of(config, tiny_base)
    preflight.check_disk(config, model, home / "run")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 1}))
    with pytest.raises(ResourceError, match="free some or set output"):
        preflight.check_disk(config, model, home / "run")


def test_the_disk_holds_the_backbone_twice(tiny_base):
    backbone = sum(parameter.numel() for parameter in make_backbone().parameters())
    config = recipe(tiny_base)
    assert preflight.disk_of_run(config, ModelSpec.of(config, tiny_base)) > 2 * 4 * backbone


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_parameters_are_counted_without_loading_them(tiny_base, lora):
    model = ModelSpec.of(recipe(tiny_base, lora=lora), tiny_base)
    parameters = list(model.build(torch.float32).parameters())
    assert preflight.parameter_counts(model) == (
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    )


def test_settings_that_save_memory_save_it_on_paper(tiny_base):
    config = recipe(tiny_base)
    model = ModelSpec.of(config, tiny_base)

    def memory(**training):
        settings = config.training.model_copy(update={"precision": "bf16", "zero_stage": 1} | training)
        return memory_of_worker(model, settings, device="cuda", tokens=8000)

    one, four = memory(), memory(workers=4, zero_stage=2)
    assert four.optimizer == one.optimizer / 4
    assert four.gradients == one.gradients / 4
    assert memory(workers=4, zero_stage=3).weights == one.weights / 4
    assert four.communication > one.communication, "NCCL joins"
    chunked = memory(tokens_per_chunk=1000)
    assert chunked.activations == pytest.approx(one.activations / 8)
    assert chunked.gradients == one.gradients, "chunks add up in bf16 below ZeRO 2"
    in_fp32 = memory(tokens_per_chunk=1000, zero_stage=2)
    assert in_fp32.gradients == 3 * one.gradients, "and in fp32 from there on"
    assert memory(activation_checkpointing=True).activations < one.activations


def test_the_head_counts(tiny_base):
    config = recipe(tiny_base)
    model = ModelSpec.of(config, tiny_base)
    wide = LatentPoolingConfig(num_latents=64, num_heads=8, head_width=32)

    def activations(pooling):
        settings = model.settings.model_copy(update={"pooling": pooling})
        return preflight.activation_bytes(replace(model, settings=settings), config.training, torch.float32)

    assert activations(wide) > activations(MeanPoolingConfig()) + 8 * 32 * 4


def test_time_on_paper_is_that_of_the_named_gpu(tiny_base):
    config = recipe(tiny_base)
    model = ModelSpec.of(config, tiny_base)

    def seconds(**training):
        return preflight.step_seconds(model, config.training.model_copy(update=training), 1000)

    assert seconds() is None
    h100 = seconds(accelerator_type="H100")
    assert seconds(accelerator_type="L4") == pytest.approx(h100 * 989 / 121)
    assert h100 < seconds(accelerator_type="H100", activation_checkpointing=True) < 2 * h100


@pytest.mark.parametrize("family", ENCODER_FAMILIES)
def test_encoders_are_counted_and_prepared_like_decoders(family, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr("rayembed.training.resources.measured_peak", lambda *_: 1e9)
    config = recipe(tiny_base)
    model = ModelSpec.of(config, save_random(*ENCODER_FAMILIES[family], tmp_path))
    plain, checkpointed = (
        preflight.activation_bytes(
            model, config.training.model_copy(update={"activation_checkpointing": on}), torch.float32
        )
        for on in (False, True)
    )
    assert 0 < checkpointed < plain
    built = model.build(torch.float32)
    prepare_for_stage(built, config.stages[0].model_copy(update={"attention_dropout": 0.25}), config.training)
    names = ("attention_dropout", "attention_head_size")
    attentions = [each for each in built.backbone.modules() if any(hasattr(each, name) for name in names)]
    assert {
        getattr(each, "attention_dropout", None) or each.get_submodule("dropout").p for each in attentions
    } == {0.25}
    batch = pack_ids([[5, 6, 7], [8, 9]], [0, 0])
    built.train()(batch).sum().backward()
    assert all(each.grad is not None for each in built.parameters() if each.requires_grad)
    assert Utilization(built, torch.device("cpu")).of(batch, 1.0)[0] > 0
