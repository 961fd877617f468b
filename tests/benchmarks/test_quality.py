"""The report on quality, over tiny models and rows."""

import importlib
import json
import sys
from pathlib import Path

from rayembed.contract import Contract
from rayembed.evaluation import catalogue
from rayembed.model.checkpoint import save_model
from rayembed.records.schema import PAIR_SCHEMA
from tests.evaluation.conftest import pair, write_split
from tests.tiny import make_tokenizer
from tests.training.models import make_embedder

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SOURCES = {"DocstringRetrieval": "python-docstrings", "PerlQuestionRetrieval": "perlfaq"}


def test_tasks_that_training_never_saw_are_reported_apart(tmp_path, monkeypatch):
    for source in SOURCES.values():
        rows = [pair(f"sort number {n}", f"def sort_{n}(): number {n}", source) for n in range(5)]
        write_split(tmp_path / "data", source, "test", rows, PAIR_SCHEMA)
    for name in ("model", "untrained"):
        provenance = {"sources": ["python-docstrings"]}
        save_model(
            tmp_path / name,
            make_embedder(),
            make_tokenizer(),
            Contract(max_length=128),
            provenance=provenance,
        )
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "minilm.json").write_text(json.dumps(dict.fromkeys(SOURCES, 0.5)))
    monkeypatch.setattr(catalogue, "build_source", lambda name, data_dir: data_dir / name)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    arguments = [str(tmp_path), "--data-dir", str(tmp_path / "data"), "--tasks", *SOURCES]
    monkeypatch.setattr(sys, "argv", ["quality", *arguments, "--json", str(tmp_path / "report.json")])
    importlib.import_module("quality").main()
    bars = {bar["name"]: bar for bar in json.loads((tmp_path / "report.json").read_text())["bars"]}
    assert {name: list(bar["detail"]["tasks"]) for name, bar in bars.items()} == {
        "quality_mean": list(SOURCES),
        "quality_retrieval": list(SOURCES),
        "quality_held_out": ["PerlQuestionRetrieval"],
    }
    [row] = bars["quality_held_out"]["detail"]["tasks"].values()
    assert bars["quality_held_out"]["value"] == row["trained"] - 0.5
    assert row["last"] == 0.87294
