import csv

import pytest

from rayembed.evaluation.results import ModelRecord, read_record, write_record
from rayembed.reports.evaluation import write_evaluation_report
from tests.evaluation.conftest import TASK_TYPES, model_record


def test_a_model_gets_a_page_a_markdown_and_a_table_beside_published_rows(tmp_path):
    folder = write_record(model_record("mine", 0.1), tmp_path)
    page = write_evaluation_report(read_record(folder), folder, [model_record("untrained")])
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
    assert "| STS12 | main | 0.600 | none |" in markdown
    assert "over 3 tasks: +0.1000" in markdown
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert [row["task"] for row in rows] == list(TASK_TYPES)
    assert float(rows[0]["NV-Embed-v2"]) == pytest.approx(0.8013)
    assert rows[1]["low"] == ""


def test_published_rows_stand_only_beside_their_own_version(tmp_path):
    other = ModelRecord("mine", "m", "rayembed-offline", model_record("mine").tasks, {})
    html = write_evaluation_report(other, tmp_path).read_text()
    assert "72.31" not in html
    assert "0.723" not in html
