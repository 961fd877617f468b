"""Small recipes, and the files of their sources."""

import json
from pathlib import Path

from rayembed.config.loading import validate_config
from rayembed.config.run import RunConfig
from tests.training.sources import stage

PAIRS = {"source": "pairs", "weight": 2, "in_batch_negatives": True, "negatives_per_query": 0}
LABELS = {"source": "labels", "weight": 1, "in_batch_negatives": False, "negatives_per_query": 2}


def write_pairs(home: Path, rows: int) -> None:
    """Questions; each of the first twenty documents answers every twentieth."""
    lines = [{"query": f"what is {row}?", "positive": f"about {row % 20}"} for row in range(rows)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_labels(home: Path) -> None:
    """Six texts of each of three classes."""
    labels = [{"text": f"{label} {number}", "label": label} for label in "abc" for number in range(6)]
    (home / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))


def recipe(*entries: dict, training: dict | None = None, **settings) -> RunConfig:
    """One stage over the entries, in a workspace that has their files."""
    raw = {
        "name": "prepared",
        "base_model": "none",
        "data": {
            "sources": {
                "pairs": {"path": "pairs.jsonl"},
                "labels": {"path": "labels.jsonl", "kind": "labels", "task_type": "classification"},
            }
        },
        "training": training or {},
        "stages": [
            {"name": "one", "steps": 6, "batch_size": 6, "learning_rate": 1e-3, "blend": list(entries)}
            | settings
        ],
    }
    return validate_config(raw, origin="here")


def tiny_recipe(base: Path | str = "unused", **changes) -> RunConfig:
    """One contrastive stage over two sources that tests write themselves."""
    settings = {
        "name": "tiny",
        "base_model": str(base),
        "contract": {"max_length": 64},
        "model": {"pooling": {"type": "latent", "num_latents": 4, "num_heads": 2, "head_width": 8}},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
        "stages": [stage().model_dump(mode="json")],
    }
    return validate_config(settings | changes, origin="test")
