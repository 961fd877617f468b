import csv

import pytest
from typer.testing import CliRunner

from rayembed.cli.main import app
from rayembed.common.errors import DataError
from rayembed.evaluation.comparison import adjusted, compare, format_comparison, interval, paired
from rayembed.evaluation.results import ModelRecord, TaskRecord, read_record, write_record
from rayembed.reports.evaluation import write_evaluation_report

TYPES = {"SciFact": "Retrieval", "STS12": "STS", "Banking77Classification": "Classification"}


def record(label: str, shift: float = 0.0) -> ModelRecord:
    tasks = []
    for number, (name, kind) in enumerate(TYPES.items()):
        samples = {} if kind == "STS" else {str(n): 0.4 + n / 100 + shift for n in range(20)}
        score = sum(samples.values()) / len(samples) if samples else 0.5 + shift
        instructions = {"query": "Find <it>", "document": None, "origin": "mteb"}
        overlap = "trained on a source named scifact" if number == 0 else None
        tasks.append(TaskRecord(name, kind, "main", score, samples, instructions, "r1", overlap))
    return ModelRecord(label, label * 16, "MTEB(eng, v1)", tuple(tasks), {"mteb": "2.26"})


def test_a_model_gets_a_page_a_markdown_and_a_table_beside_published_rows(tmp_path):
    folder = write_record(record("mine", 0.1), tmp_path)
    page = write_evaluation_report(read_record(folder), folder, [record("untrained")])
    assert page == tmp_path / "mine" / "index.html"
    html = page.read_text()
    for text in (
        "MTEB(eng, v1)",
        "NV-Embed-v2",
        "0.723",
        "0.801",
        "Find &lt;it&gt;",
        "scifact",
        "Against untrained",
    ):
        assert text in html
    assert html.count("<svg") == 2
    assert "<script" not in html
    assert "http" not in html
    markdown = (folder / "scores.md").read_text()
    assert "| SciFact | main | 0.595 |" in markdown
    assert "over 3 tasks: +0.1000" in markdown
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert [row["task"] for row in rows] == list(TYPES)
    assert float(rows[0]["NV-Embed-v2"]) == pytest.approx(0.8013)
    assert rows[1]["low"] == ""


def test_published_rows_stand_only_beside_their_own_version(tmp_path):
    other = ModelRecord("mine", "m", "rayembed-offline", record("mine").tasks, {})
    html = write_evaluation_report(other, tmp_path).read_text()
    assert "72.31" not in html
    assert "0.723" not in html


def test_two_models_are_compared_on_equal_rows():
    first, second = record("a"), record("b", 0.05)
    moved = TaskRecord("SciFact", "Retrieval", "main", 0.9, {}, None, "r2", None)
    second = ModelRecord("b", "b", None, (moved, *second.tasks[1:]), {})
    result = compare(first, second)
    assert [row.task.name for row in result.tasks] == ["STS12", "Banking77Classification"]
    assert result.left_out == ("SciFact",)
    assert result.tasks[0].test is None
    assert result.tasks[1].test.difference == pytest.approx(0.05)
    assert result.tasks[1].adjusted_p < 0.01
    assert "left out" in format_comparison(result)
    with pytest.raises(DataError, match="no common task"):
        compare(first, ModelRecord("c", "c", None, (moved,), {}))


def test_the_command_compares_two_folders_of_results(tmp_path):
    folders = [
        str(write_record(record(label, shift), tmp_path)) for label, shift in (("a", 0.0), ("b", 0.05))
    ]
    result = CliRunner().invoke(app, ["evaluate", "--compare", *folders])
    assert result.exit_code == 0, result.output
    assert "SciFact" in result.output
    assert "+0.050" in result.output


def test_a_difference_is_told_from_noise():
    steady = paired([0.1 * n for n in range(10)], [0.1 * n + 0.2 for n in range(10)])
    assert steady.low == pytest.approx(0.2)
    assert steady.p_value == pytest.approx(2 / 2**10, abs=1e-4)
    noise = paired([0.5] * 10, [0.4, 0.6] * 5)
    assert noise.low < 0 < noise.high
    assert noise.p_value > 0.5
    assert paired([1.0, 2.0], [1.0, 2.0]) is None
    low, high = interval([0.0, 1.0] * 50)
    assert 0.35 < low < 0.5 < high < 0.65


def test_holm_corrects_for_the_number_of_tests():
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([]) == []


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no record.json; name a folder"):
        read_record(tmp_path)
    (tmp_path / "record.json").write_text('{"tasks": []')
    with pytest.raises(DataError, match="not the record of an evaluation"):
        read_record(tmp_path)
