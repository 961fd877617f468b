"""Stages of every kind one after the other on two real workers, and a run that meets bad batches."""

import json

import pytest
import ray
import torch
import yaml
from transformers import MistralForCausalLM

from rayembed.common.errors import TrainingError
from rayembed.common.ray_cluster import connect
from rayembed.config.loading import load_config
from rayembed.model.checkpoint import load_model, read_manifest
from rayembed.training.checkpoint import load_weights
from rayembed.training.run import train
from tests.tiny import make_backbone, make_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYEMBED_HOME", str(folder))
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        connect(num_cpus=3)
        yield folder
        ray.shutdown()


def write_recipe(home, name, stages, **changes):
    torch.manual_seed(4)
    MistralForCausalLM(make_backbone().config).save_pretrained(home / "base")
    make_tokenizer().save_pretrained(home / "base")
    words = ["sun", "rain", "snow", "wind", "fog", "hail", "dew", "ice", "mist", "storm", "cloud", "frost"]
    rows = [{"query": f"{word} {n}", "positive": f"about {word} {n}"} for n in range(3) for word in words]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    blend = [{"source": "pairs", "weight": 1, "in_batch_negatives": True}]
    common = {"steps": 3, "batch_size": 7, "learning_rate": 5e-3, "blend": blend}
    recipe = {
        "name": name,
        "base_model": str(home / "base"),
        "contract": {"max_length": 64},
        "model": {"pooling": {"type": "latent", "num_latents": 4, "num_heads": 2, "head_width": 8}},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
        "data": {"sources": {"pairs": {"path": "pairs.jsonl"}}},
        "stages": [common | stage for stage in stages],
        "training": {
            "workers": 2,
            "cpus_per_worker": 0.5,
            "threads_per_worker": 1,
            "tokens_per_chunk": 60,
            "activation_checkpointing": True,
        },
    }
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


def test_all_kinds_of_stages_in_sequence(home):
    stages = [
        {"name": "mntp", "kind": "mntp"},
        {"name": "simcse", "kind": "simcse", "adapters": "merge"},
        {"name": "contrastive", "matryoshka": {"dimensions": [32, 8]}},
    ]
    folder = train(load_config(write_recipe(home, "sequence", stages)))
    run = folder.parent
    loaded = load_model(folder)
    assert loaded.embedder.dimensions == 32
    provenance = read_manifest(folder)["provenance"]
    assert [(stage["kind"], stage["kept_step"]) for stage in provenance["stages"]] == [
        ("mntp", 3), ("simcse", 3), ("contrastive", 3),
    ]  # fmt: skip
    trained = [load_weights(path) for path in sorted((run / "stages").glob("*/trained"))]
    heads = [{name for name in weights if name.startswith("pooling.")} for weights in trained]
    assert heads[0] == set()
    assert heads[1] == heads[2] != set()
    assert (run / "stages" / "1-simcse" / "base" / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(9))
    assert all(line["sources"]["pairs"].keys() >= {"loss", "accuracy", "rows"} for line in lines)
    assert all(line["phases"].keys() >= {"data", "forward", "backward", "optimizer"} for line in lines)
    assert lines[0]["uniformity"] is None
    assert lines[8]["uniformity"] < 0
    assert lines[8]["sources"]["pairs"]["rows"] == 7


def test_a_bad_batch_stops_the_run_or_is_skipped(home):
    # Cosines over such a temperature are infinite, so every batch is bad.
    path = write_recipe(home, "bad", [{"name": "broken", "temperature": 1e-44}])
    with pytest.raises(TrainingError, match="is not finite in stage broken, step 0, of the rows"):
        train(load_config(path))
    bad = home / "runs" / "bad" / "bad_batches.jsonl"
    assert len(bad.read_text().splitlines()) == 1  # not tried again
    folder = train(load_config(path, ["training.on_bad_batch=skip"]))
    assert [json.loads(line)["step"] for line in bad.read_text().splitlines()] == [0, 0, 1, 2]
    assert len(json.loads(bad.read_text().splitlines()[-1])["rows"]) == 7
    assert (folder / "rayembed.json").is_file()
