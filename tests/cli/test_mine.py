from pathlib import Path

from rayembed.cli.mine import mining_of_round, training_of_round
from rayembed.config.loading import load_config, load_recipe
from rayembed.data.build import declared_source
from rayembed.data.contamination import compared_sources
from rayembed.mining.config import MiningRecipe
from rayembed.training.handover import trained_contract

ROOT = Path(__file__).resolve().parents[2]


def test_a_later_round_trains_on_the_mined_rows_only_where_there_are_some():
    config = load_config(ROOT / "jobs/configs/quickstart.yaml")
    later = training_of_round(config, {"python-docstrings": Path("/mined/train.parquet")}, 2)
    assert later.name == "quickstart-round-2"
    mined = later.data.sources["python-docstrings-mined"]
    assert (mined.path, mined.derived_from) == ("/mined/train.parquet", "python-docstrings")
    assert declared_source(later.data, "python-docstrings-mined").licence == "PSF-2.0"
    assert "python-docstrings" in compared_sources(later.data, ["python-docstrings-mined"])
    for before, after in zip(config.stages, later.stages, strict=True):
        for old, new in zip(before.blend, after.blend, strict=True):
            if old.source == "python-docstrings":
                assert new == old.model_copy(update={"source": "python-docstrings-mined", "mining": None})
            else:
                assert new == old


def test_the_last_model_is_a_teacher_of_its_round():
    recipe = load_recipe(ROOT / "jobs/configs/mine.yaml", MiningRecipe)
    named = recipe.sources[0].model_copy(update={"teachers": ("words",)})
    later = mining_of_round(recipe.model_copy(update={"sources": (named,)}), Path("/runs/a/model"), 1)
    assert later.teachers["last-round"].path == "/runs/a/model"
    assert later.sources[0].teachers == ("words", "last-round")
    assert later.output == "mined/round-1"


def test_what_is_derived_from_a_source_has_its_facts():
    raw = {
        "name": "x", "base_model": "none",
        "data": {"sources": {
            "nq": {"path": "nq.jsonl", "instruction": "Find the answer", "task_type": "sts",
                   "licence": "CC0"},
            "mined": {"path": "mined.jsonl", "derived_from": "nq"},
        }},
        "stages": [{"name": "one", "steps": 1, "batch_size": 2, "learning_rate": 1.0e-3,
                    "in_batch_negatives": True, "blend": {"mined": 1}}],
    }  # fmt: skip
    config = load_config(raw)
    assert config.stages[0].blend[0].instruction == "Find the answer"
    source = declared_source(config.data, "mined")
    assert (source.task_type, source.licence) == ("sts", "CC0")
    contract = trained_contract(config)
    assert contract.instructions["nq"] == contract.instructions["mined"] == "Find the answer"
