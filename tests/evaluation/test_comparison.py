import numpy as np
import pytest
from typer.testing import CliRunner

from rayembed.cli.main import app
from rayembed.common.errors import DataError
from rayembed.evaluation.comparison import adjusted, compare, format_comparison, interval, paired
from rayembed.evaluation.results import ModelRecord, TaskRecord, read_record, write_record
from tests.evaluation.conftest import model_record


def test_two_models_are_compared_on_equal_rows():
    first, second = model_record("a"), model_record("b", 0.05)
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
        str(write_record(model_record(label, shift), tmp_path)) for label, shift in (("a", 0.0), ("b", 0.05))
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
    generator = np.random.default_rng(0)
    least = paired(np.zeros(200), generator.normal(0, 0.1, 200)).detectable
    assert least == pytest.approx(2.8 * 0.1 / np.sqrt(200), rel=0.1)
    seen = [paired(np.zeros(200), generator.normal(least, 0.1, 200)).p_value < 0.05 for _ in range(60)]
    assert 0.65 < np.mean(seen) < 0.95
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
