import csv
from pathlib import Path

import pytest

from rayembed.common.errors import ConfigError
from rayembed.common.paths import fetch
from rayembed.evaluation.ablation import Cell, ablate, cell_config, cells, load_grid
from rayembed.evaluation.results import ModelRecord, TaskRecord, write_record

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "jobs" / "configs"
GRID = """
name: tiny
recipe: {recipe}
output: {output}
seeds: [1, 2]
tasks: [SimLex999]
set: {{base_layers: 2}}
factors:
  pooling:
    latent: {{}}
    mean: {{set: {{model.pooling: {{type: mean}}}}}}
  order:
    two-stage: {{}}
    reversed: {{stages: [blend, retrieval]}}
tables:
  - {{name: pooling, factors: [pooling]}}
  - {{name: order, factors: [order]}}
"""


@pytest.fixture
def grid_file(tmp_path):
    path = tmp_path / "grid.yaml"
    recipe = REPOSITORY / "jobs" / "configs" / "quickstart.yaml"
    path.write_text(GRID.format(recipe=recipe, output=tmp_path / "ablations"))
    return path


class FakeRunner:
    """Scores by pooling; counts its calls."""

    def __init__(self):
        self.calls: list[str] = []

    def __call__(self, grid, config, folder):
        self.calls.append(config.name.rpartition("-")[0])
        shift = 0.2 if config.model.pooling.type == "mean" else 0.0
        tasks = tuple(
            TaskRecord(f"T{n}", "STS", "cosine_spearman", 0.05 * n + shift, {}, None, "r", None)
            for n in range(10)
        )
        write_record(ModelRecord("trained", "d", None, tasks, {}), folder / "results")


def test_tables_share_their_cells_and_seeds_come_whole(grid_file):
    planned = cells(load_grid(grid_file))
    assert [cell.name for cell in planned] == [
        *("reference-seed1", "pooling-mean-seed1", "order-reversed-seed1"),
        *("reference-seed2", "pooling-mean-seed2", "order-reversed-seed2"),
    ]


def test_a_cell_changes_the_recipe(grid_file, tmp_path):
    grid = load_grid(grid_file)
    cell = Cell((("pooling", "mean"), ("order", "reversed")), 2)
    config = cell_config(grid, cell, grid_file.parent, tmp_path / "cells")
    assert config.name.rpartition("-")[0] == "pooling-mean-order-reversed-seed2"
    assert (config.seed, config.base_layers) == (2, 2)
    assert config.model.pooling.type == "mean"
    assert [stage.name for stage in config.stages] == ["blend", "retrieval"]
    assert config.output == str(tmp_path / "cells")


def test_cells_are_run_once_and_the_tables_test_them(grid_file):
    grid, runner = load_grid(grid_file), FakeRunner()
    folder = ablate(grid, grid_file.parent, most_cells=2, runner=runner)
    assert runner.calls == ["reference-seed1", "pooling-mean-seed1"]
    assert "| order reversed | 0 | not run |" in (folder / "ablation.md").read_text()

    ablate(grid, grid_file.parent, runner=runner)
    assert len(runner.calls) == 6
    ablate(grid, grid_file.parent, runner=runner)
    assert len(runner.calls) == 6

    (folder / "ablation.csv").unlink()
    ablate(grid, grid_file.parent, most_cells=0, runner=runner)
    rows = {row["choice"]: row for row in csv.DictReader((folder / "ablation.csv").open())}
    assert float(rows["pooling mean"]["difference"]) == pytest.approx(0.2)
    assert float(rows["pooling mean"]["p"]) < 0.01
    assert float(rows["order reversed"]["difference"]) == 0
    assert float(rows["order reversed"]["p"]) == 1
    assert rows["reference"]["p"] == ""
    assert float(rows["pooling mean"]["detectable"]) == pytest.approx(0, abs=1e-9)
    assert rows["pooling mean"]["seeds"] == "2"


def test_cells_that_another_node_scored_in_a_store_are_not_run_again(grid_file, node, s3):
    runner = FakeRunner()
    grid = load_grid(grid_file).model_copy(update={"output": s3.uri("bucket/ablations")})
    ablate(grid, grid_file.parent, most_cells=2, runner=runner)
    node("b")
    folder = ablate(grid, grid_file.parent, runner=runner)
    assert len(runner.calls) == len(set(runner.calls)) == 6
    node("c")
    assert "not run" not in fetch(folder / "ablation.md").read_text()


def test_levels_of_one_name_and_changed_recipes_share_no_record(grid_file):
    text = grid_file.read_text().replace("    latent: {}", "    latent: {}\n    on: {set: {seed: 5}}")
    text = text.replace("    two-stage: {}", "    two-stage: {}\n    on: {set: {lora.rank: 2}}\n    2: {}")
    grid_file.write_text(text)
    grid, runner = load_grid(grid_file), FakeRunner()
    assert list(grid.factors["order"]) == ["two-stage", "on", "2", "reversed"]
    ablate(grid, grid_file.parent, runner=runner)
    assert len(runner.calls) == len(set(runner.calls)) == 2 * (1 + 2 + 3)
    grid_file.write_text(text.replace("base_layers: 2", "base_layers: 3"))
    folder = ablate(load_grid(grid_file), grid_file.parent, runner=runner, most_cells=0)
    assert "| pooling mean | 0 | not run |" in (folder / "ablation.md").read_text()


def test_a_failed_cell_costs_only_itself(grid_file):
    grid, runner = load_grid(grid_file), FakeRunner()

    def fails_once(grid, config, folder):
        if config.name.startswith("pooling-mean-seed1"):
            raise OSError("no space")
        runner(grid, config, folder)

    with pytest.raises(
        RuntimeError, match="1 cells failed, run again to repeat them: pooling-mean-seed1: no space"
    ):
        ablate(grid, grid_file.parent, runner=fails_once)
    assert len(runner.calls) == 5
    ablate(grid, grid_file.parent, runner=runner)
    assert runner.calls[5:] == ["pooling-mean-seed1"]


def test_a_bad_grid_is_refused_before_anything_runs(grid_file):
    text = grid_file.read_text()
    grid_file.write_text(text.replace("factors: [order]", "factors: [mask]"))
    with pytest.raises(ConfigError, match="varies 'mask', which is no factor"):
        load_grid(grid_file)
    grid_file.write_text(text.replace("[blend, retrieval]", "[blend, search]"))
    with pytest.raises(ConfigError, match="cell order reversed: the recipe has no stage 'search'"):
        ablate(load_grid(grid_file), grid_file.parent, runner=FakeRunner())
    grid_file.write_text(text.replace("model.pooling:", "model.pool:"))
    with pytest.raises(ConfigError, match=r"cell pooling mean: .*model.pool"):
        ablate(load_grid(grid_file), grid_file.parent, runner=FakeRunner())


@pytest.mark.parametrize(
    ("name", "factors", "count"),
    [("paper", {"pooling", "mask", "stages", "labels", "negatives"}, 45), ("mntp", {"preparation"}, 6)],
)
def test_every_cell_of_the_shipped_grids_trains_something_else(home, name, factors, count):
    for folder in ("mined", "mined-naive", "mined-random"):
        (home / folder / "python-docstrings").mkdir(parents=True)
        (home / folder / "python-docstrings" / "train.parquet").touch()
    path = CONFIGS / f"ablation-{name}.yaml"
    grid = load_grid(path)
    assert set(grid.factors) == factors
    assert len(grid.seeds) == 3
    configs = [cell_config(grid, cell, path.parent, home) for cell in cells(grid)]
    contents = {config.model_copy(update={"name": "cell"}).to_yaml() for config in configs}
    assert len(configs) == len(contents) == count
