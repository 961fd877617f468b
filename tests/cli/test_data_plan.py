"""What `rayembed data plan` prints, read as a person would."""

import pytest
import yaml
from typer.testing import CliRunner

from rayembed.cli.main import app
from rayembed.common.errors import ConfigError
from rayembed.training.show_plan import show_plan
from tests.training.recipes import LABELS, PAIRS, recipe, write_labels, write_pairs


@pytest.fixture
def config(home, monkeypatch):
    write_pairs(home, 24)
    write_labels(home)
    monkeypatch.setenv("COLUMNS", "100")
    return recipe(
        PAIRS | {"instruction": "Find the answer"},
        LABELS | {"instruction": "Sort these texts by their first letter", "symmetric": True},
    )


def test_a_batch_shows_its_rows_with_instructions_and_competitors(config):
    lines = list(show_plan(config, show=1))
    text = "\n".join(lines)
    assert "stage one: 6 steps of 6 rows, blended" in text
    assert "rows: 4 pairs, 2 labels" in text
    documents = {
        line.split(maxsplit=1)[1] for line in lines if line.split()[:1] in (["positive"], ["negative"])
    }
    assert f"against all {len(documents)} documents of the batch but its own answers: pairs" in text
    assert "against its own negatives only: labels" in text
    queries = [line for line in lines if line.lstrip().startswith("query")]
    assert len(queries) == 6
    assert sum("Instruct: Find the answer Query: what is" in line for line in queries) == 4
    positives = [line for line in lines if line.lstrip().startswith("positive")]
    assert sum("Instruct: Sort these texts" in line for line in positives) == 2
    assert sum(line.lstrip().startswith("negative") for line in lines) == 4
    assert text.count(f"(against {len(documents) - 1} documents, 0 its own)") == 4
    assert text.count("(against its 2 negatives)") == 2
    assert max(map(len, lines)) <= 100


def test_the_table_sums_up_the_whole_plan(config):
    lines = list(show_plan(config, show=0))
    [pairs] = [line.split() for line in lines if line.startswith("  pairs")]
    [labels] = [line.split() for line in lines if line.startswith("  labels")]
    assert pairs[:5] == ["pairs", "24", "24", "66.7%", "1.00"]
    assert labels[:5] == ["labels", "18", "12", "33.3%", "0.67"]
    assert not any(line.startswith("---") for line in lines)


def test_steps_are_chosen_and_nothing_is_trained(config, home):
    lines = list(show_plan(config, show=3, step=4))
    assert [line.split(" -")[0] for line in lines if line.startswith("---")] == [
        "--- stage one, step 4 of 6",
        "--- stage one, step 5 of 6",
    ]
    assert not (home / "runs").exists()


def test_long_texts_are_cut_unless_wanted(config, home):
    (home / "pairs.jsonl").write_text(
        "".join(f'{{"query": "{"word " * 80}{row}", "positive": "p {row}"}}\n' for row in range(24))
    )
    short, full = (list(show_plan(config, show=1, full=full)) for full in (False, True))
    assert sum(line.endswith(" ...") for line in short) == 4
    assert not any(line.endswith(" ...") for line in full)
    assert len(full) > len(short)


def test_an_unknown_stage_or_step_is_named(config):
    with pytest.raises(ConfigError, match="no stage 'two'; the stages are one"):
        list(show_plan(config, show=1, stage_name="two"))
    with pytest.raises(ConfigError, match="has 6 steps, there is no step 6"):
        list(show_plan(config, show=1, step=6))


def test_the_command_prints_it(config, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    result = CliRunner().invoke(app, ["data", "plan", str(path), "--show", "2", "--set", "stages.0.steps=2"])
    assert result.exit_code == 0, result.output
    assert result.output.count("--- stage one") == 2
