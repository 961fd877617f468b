"""A study in miniature: its cells, its pieces on disk, and its table."""

import json
from pathlib import Path

import numpy as np
import pytest

from rayembed.common.errors import ConfigError, DataError
from rayembed.compression.run import calibration_texts, plan, run_study
from rayembed.compression.study import AXES, CalibrationConfig, CompressionConfig, cells
from rayembed.compression.table import effect_rows, write_table
from rayembed.config.loading import load_recipe
from rayembed.contract import Contract
from rayembed.engine.engine import Engine
from rayembed.evaluation.results import ModelRecord, TaskRecord, write_record
from rayembed.model.checkpoint import load_model, read_manifest, save_model
from rayembed.reports.compression import write_page
from tests.tiny import make_tokenizer
from tests.training.models import make_embedder
from tests.training.recipes import tiny_recipe

TEXTS = [f"text number {number} of all" for number in range(12)]


@pytest.fixture
def recipe(home):
    save_model(home / "dense", make_embedder(), make_tokenizer(), Contract(max_length=48))
    rows = [{"query": text, "positive": text.upper()} for text in TEXTS]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = tiny_recipe(lora={"rank": 2, "dropout": 0.0}).model_dump(
        mode="json", exclude={"contract", "model"}
    )
    (home / "again.yaml").write_text(json.dumps(again))
    return {
        "name": "tiny",
        "checkpoint": "dense",
        "calibration": {"path": "rows.jsonl", "count": 16},
        "methods": ["magnitude", "sparsegpt"],
        "patterns": ["2:4"],
        "retraining": {"taught": {"recipe": "again.yaml", "distillation": 0.5, "state_matching": 0.1}},
        "weights": ["stored", "int8"],
        "vectors": [{}, {"dimensions": 16, "format": "binary"}],
    }


class Train:
    """Stands for a training run: doubles what is not zero."""

    def __init__(self):
        self.runs = []

    def __call__(self, config):
        self.runs.append(config)
        model = load_model(Path(config.base_model))
        for parameter in model.embedder.backbone.parameters():
            parameter.data.mul_(2)
        folder = Path(config.output) / config.name / "model"
        save_model(folder, model.embedder, model.tokenizer, model.contract, provenance={"trained": True})
        return folder


def score(checkpoint, *, output, vectors, name, **options):
    """Cosine with what the dense model gives."""
    calls.append((checkpoint, vectors))
    engine = Engine.load(checkpoint)
    found = engine.encode(TEXTS).vectors
    ranges = engine.contract.vector_ranges
    assert ranges is not None  # some cell's vectors are bits
    found = vectors.as_searched(found, ranges) if vectors else found
    cosines = found @ found.T
    tasks = tuple(
        TaskRecord(f"task {row}", "STS", "cosine", float(np.abs(cosines[row]).mean()), {}, None, "1", None)
        for row in range(4)
    )
    write_record(ModelRecord(name, engine.digest, None, tasks, {}), output)


calls: list = []


def test_a_study_makes_each_piece_once_and_its_table_tells_what_each_choice_changes(recipe, home):
    study = load_recipe(recipe, CompressionConfig)
    calls.clear()
    train = Train()
    measured = run_study(study, home, train, score, actors=0)
    assert [tuple(one.cell.levels.values()) for one in measured][:3] == [
        ("dense", "", "none", "stored", "float32"),
        ("dense", "", "none", "stored", "16-binary"),
        ("dense", "", "none", "int8", "float32"),
    ]
    assert len(measured) == len(calls) == 24
    assert len(train.runs) == 3
    for config in train.runs:
        assert config.keep_zeros
        assert config.contract == Contract(max_length=48)
        assert [loss.type for loss in config.stages[0].loss] == [
            "infonce",
            "vector_distillation",
            "state_matching",
        ]
        assert config.stages[0].loss[1].teacher == str(home / "dense")
    pruned = {own.pruned for cell, own in plan(study, home).items() if cell.sparsity}
    assert len(pruned) == 2
    for folder in pruned:
        weight = load_model(folder).embedder.backbone.layers[1].mlp.down_proj.weight
        assert ((weight == 0).view(-1, 4).sum(dim=1) == 2).all()
        assert read_manifest(folder)["provenance"]["parent"] == read_manifest(home / "dense")["digest"]
    by_levels = {tuple(one.cell.levels.values())[:4]: one for one in measured}
    sizes = [by_levels[levels].disk_bytes for levels in (
        ("dense", "", "none", "stored"), ("sparsegpt", "2:4", "none", "stored"),
        ("sparsegpt", "2:4", "taught", "int8"))]  # fmt: skip
    assert sizes == sorted(sizes, reverse=True)
    assert all(one.texts_per_second > 0 and one.memory_bytes > one.disk_bytes / 2 for one in measured)

    assert {(str(one.cell.vectors), one.vector_bytes) for one in measured} == {
        ("float32", 4 * read_manifest(home / "dense")["dimensions"]), ("16-binary", 2)}  # fmt: skip
    firsts = [vectors for _, vectors in calls[:12]]
    assert firsts.count(None) == 12  # each checkpoint encodes the texts before smaller vectors find them

    rows = write_table(study, measured, home)
    stored = json.loads((home / "compression.json").read_text())
    assert stored["cells"] == json.loads(json.dumps(rows))
    assert [row["score"] for row in rows] == [one.record.categories()["mean"] for one in measured]
    [effect] = [row for row in stored["effects"] if row["axis"] == "method"]
    assert (effect["from"], effect["to"], effect["pattern"], effect["cells"]) == (
        "magnitude",
        "sparsegpt",
        "2:4",
        8,
    )
    scores = {tuple(row[axis] for axis in AXES): row["score"] for row in rows}
    by_hand = [
        score - scores["magnitude", *levels[1:]]
        for levels, score in scores.items()
        if levels[0] == "sparsegpt"
    ]
    assert effect["difference"] == pytest.approx(np.mean(by_hand))
    assert {(row["axis"], row["pattern"]) for row in effect_rows(measured)} >= {
        ("weights", "dense"),
        ("vectors", "2:4"),
    }
    assert (home / "compression.md").read_text().count("\n| sparsegpt |") == 8
    assert write_page("tiny", rows, home).read_text().count("<svg") == 3

    again = load_recipe(recipe | {"vectors": [{"format": "int8"}]}, CompressionConfig)
    run_study(again, home, train, score, actors=0)
    assert len(calls) == 36  # only the scores are new; the reference is there
    assert len(train.runs) == 3


def test_the_reference_is_always_a_cell_and_mistakes_are_named(recipe, home):
    study = load_recipe(recipe | {"weights": ["int8"], "retraining": {}}, CompressionConfig)
    assert [cell.levels["weights"] for cell in cells(study)][:2] == ["stored", "int8"]
    unpruned = load_recipe(recipe | {"methods": [], "retraining": {}}, CompressionConfig)
    assert {(cell.weights, str(cell.vectors)) for cell in cells(unpruned)} == {
        (weights, vectors) for weights in ("stored", "int8") for vectors in ("float32", "16-binary")
    }
    with pytest.raises(ConfigError, match="retraining 'none' is a folder name too"):
        load_recipe(recipe | {"retraining": {"none": {"recipe": "again.yaml"}}}, CompressionConfig)
    taught = recipe["retraining"]["taught"] | {"set": {"lora.dropout": 0.1}}
    study = load_recipe(recipe | {"retraining": {"taught": taught}}, CompressionConfig)
    with pytest.raises(ConfigError, match=r"(?s)retraining taught: .*lora\.dropout is 0\.1"):
        plan(study, home)
    taught = {
        "recipe": "again.yaml",
        "distillation": 1.0,
        "set": {"stages.0.matryoshka": {"dimensions": [8]}},
    }
    study = load_recipe(recipe | {"retraining": {"taught": taught}}, CompressionConfig)
    with pytest.raises(
        ConfigError, match=r"(?s)retraining taught: .*vector_distillation compares whole vectors"
    ):
        plan(study, home)
    with pytest.raises(DataError, match=r"has no texts in body; name its columns in calibration\.columns"):
        calibration_texts(CalibrationConfig(path="rows.jsonl", columns=("body",)))
    texts = calibration_texts(CalibrationConfig(path="rows.jsonl", count=100))
    assert sorted(texts) == sorted([*TEXTS, *(text.upper() for text in TEXTS)])
