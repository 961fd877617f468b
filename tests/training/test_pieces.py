import json

import pytest
import torch
import yaml

from rayembed.common.errors import CheckpointError, ConfigError, ResourceError
from rayembed.config import validate_config
from rayembed.training import preflight
from rayembed.training.loop import learning_rate_factor
from rayembed.training.metrics import MetricsRecorder, StepMetrics
from rayembed.training.model import build_trainable, load_trainable_weights, trainable_weights
from rayembed.training.run import claim_run_folder
from tests.tiny import make_backbone
from tests.training.sources import stage


def recipe(base="unused", **changes):
    settings = {
        "name": "tiny",
        "base_model": str(base),
        "contract": {"max_length": 64},
        "model": {"pooling": {"type": "latent", "num_latents": 4, "num_heads": 2, "head_width": 8}},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
        "stages": [stage().model_dump(mode="json")],
    }
    return validate_config(settings | changes, origin="test")


def test_learning_rate_rises_then_falls_to_nothing():
    factors = [learning_rate_factor(step, stage(steps=10, warmup_steps=4)) for step in range(10)]
    assert factors[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert factors == sorted(factors[:5]) + sorted(factors[5:], reverse=True)
    assert 0 < factors[-1] < 0.2


def metrics(step, loss=1.0):
    return StepMetrics(
        step=step, loss=loss, learning_rate=0.1, gradient_norm=1.0, tokens=100, seconds=0.5, memory=2**20,
        utilization=0.4, padding=0.0, phases={"data": 0.1, "forward": 0.2}, uniformity=None,
        sources={"one": {"loss": loss, "accuracy": 0.5, "rows": 4}},
    )  # fmt: skip


def test_metrics_hold_one_unbroken_trace_after_a_resume(tmp_path):
    recorder = MetricsRecorder(tmp_path, "test", first_step=0, total_steps=6, steps_before=10)
    for step in range(4):
        recorder.record(metrics(step, loss=1.0))
    recorder.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"stage": "test", "st')
    recorder = MetricsRecorder(tmp_path, "test", first_step=2, total_steps=6, steps_before=10)
    recorder.record(metrics(2, loss=2.0))
    recorder.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 1.0), (11, 1.0), (12, 2.0)]
    assert lines[0]["tokens_per_second"] == 200
    assert lines[0]["sources"]["one"] == {"loss": 1.0, "accuracy": 0.5, "rows": 4}
    assert list((tmp_path / "tensorboard").iterdir())


def test_weights_of_another_model_are_refused(tiny_base):
    model = build_trainable(recipe(tiny_base), tiny_base, torch.float32)
    weights = trainable_weights(model)
    assert any(name.startswith("pooling.") for name in weights)
    assert any("lora_A" in name for name in weights)
    assert not any("embed_tokens" in name for name in weights)
    load_trainable_weights(model, weights, "here")
    with pytest.raises(CheckpointError, match=r"pooling\.latents has shape"):
        load_trainable_weights(model, weights | {"pooling.latents": torch.zeros(5, 32)}, "here")
    del weights["pooling.latents"]
    with pytest.raises(CheckpointError, match=r"pooling\.latents is on one side only"):
        load_trainable_weights(model, weights, "here")


def test_same_seed_same_start(tiny_base):
    one, two = (
        trainable_weights(build_trainable(recipe(tiny_base), tiny_base, torch.float32)) for _ in range(2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_run_folder_of_another_recipe_is_refused(home):
    folder = claim_run_folder(recipe())
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["stages"][0]["batch_size"] == 6
    assert claim_run_folder(recipe(training={"checkpoint_every": 7})) == folder
    with pytest.raises(ConfigError, match=r"stages\.0\.steps was 4 and is 5"):
        claim_run_folder(recipe(stages=[stage(steps=5).model_dump(mode="json")]))


def test_a_run_that_cannot_fit_is_refused_with_both_numbers(home, tiny_base, monkeypatch):
    config = recipe(tiny_base)
    needed = preflight.check_resources(config, tiny_base, home / "run")
    assert needed.memory_per_worker > 0
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**20}))
    with pytest.raises(ResourceError, match=r"needs about 1\.\d GiB of memory and 0\.0 GiB are free"):
        preflight.check_resources(config, tiny_base, home / "run")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 1}))
    with pytest.raises(ResourceError, match="free some or set output"):
        preflight.check_resources(config, tiny_base, home / "run")


def test_estimate_counts_chunks_and_checkpointing(tiny_base):
    long = {"contract": {"max_length": 512}}
    whole, chunked, both = (
        preflight.estimate(recipe(tiny_base, **long, training=training), tiny_base).memory_per_worker
        for training in (
            {},
            {"tokens_per_chunk": 512},
            {"tokens_per_chunk": 512, "activation_checkpointing": True},
        )
    )
    assert whole > chunked > both


def test_estimate_counts_the_backbone(tiny_base):
    backbone = make_backbone()
    assert preflight.estimate(recipe(tiny_base), tiny_base).disk > 2 * 4 * sum(
        p.numel() for p in backbone.parameters()
    )
