"""The shipped recipes of large models, dry-run with a miniature base and a few rows of each set."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayembed.config.loading import load_config
from rayembed.records.schema import label_row, pair_row, to_table
from rayembed.training import prepared_source
from rayembed.training.dry_run import describe

RECIPES = Path(__file__).resolve().parents[2] / "jobs" / "configs"
LARGE = sorted(path.stem for path in [*RECIPES.glob("nv-embed*.yaml"), *RECIPES.glob("llm2vec*.yaml")])
ROWS = 24


def few_rows(name: str, kind: str) -> pa.Table:
    if kind == "labels":
        rows = [
            label_row(f"{name} text {n}", f"class {n % 3}", dataset=name, task_type="classification")
            for n in range(ROWS)
        ]
    else:
        rows = [
            pair_row(
                f"{name} {n}?",
                [f"{name} answer {n}"],
                [f"{name} rival {n}"],
                dataset=name,
                task_type="retrieval",
            )
            for n in range(ROWS)
        ]
    return to_table(rows, kind)


@pytest.mark.parametrize("recipe", LARGE)
def test_dry_run_of_a_large_recipe(home, tiny_base, monkeypatch, recipe):
    path = RECIPES / f"{recipe}.yaml"
    stages = range(len(load_config(path).stages))
    small = ["training.workers=8", "training.min_workers=null"]
    small += [f"stages.{n}.{key}" for n in stages for key in ("steps=2", "batch_size=16", "warmup_steps=0")]
    config = load_config(
        path,
        [
            f"base_model={tiny_base}",
            "training.workers=8",
            "training.min_workers=null",
            "contract.max_length=200",
            "data.contamination.against=[]",
            *small,
        ],
    )
    declared = config.data.sources

    def files(source):  # building dozens of sources with Ray Data is tested elsewhere
        file = home / f"{source.name}.parquet"
        pq.write_table(few_rows(source.name, declared[source.name].kind), file)
        return [file]

    monkeypatch.setattr(prepared_source.PreparedSource, "_files", files)
    lines = list(describe(config, with_step=False))
    for stage in config.stages:
        assert any(line.startswith(f"stage {stage.name}: 2 steps of 16 rows") for line in lines)
    assert sum("Instruct: " in line for line in lines) > 0 or recipe == "llm2vec-unsupervised"


def test_the_large_recipes_are_there():
    assert LARGE == [
        "llm2vec-supervised", "llm2vec-unsupervised", "nv-embed-v1", "nv-embed-v2", "nv-embed-v2-1x24gb",
        "nv-embed-v2-1x80gb", "nv-embed-v2-64x80gb", "nv-embed-v2-8x80gb", "nv-embed-v2-reversed",
        "nv-embed-v2-single-stage",
    ]  # fmt: skip


def test_the_two_stages_of_nv_embed_differ_as_published():
    retrieval, blend = load_config(RECIPES / "nv-embed-v2.yaml").stages
    assert all(entry.in_batch_negatives for entry in retrieval.blend)
    assert not any(entry.in_batch_negatives for entry in blend.blend)
    assert {entry.source for entry in retrieval.blend} < {entry.source for entry in blend.blend}
    assert (retrieval.batch_size, retrieval.blend[0].negatives_per_query) == (128, 7)
