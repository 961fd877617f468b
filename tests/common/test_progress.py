import logging

import pytest

from rayembed.common import progress
from rayembed.common.progress import Progress, duration

logger = logging.getLogger("rayembed")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3600, "1 h 00 min"),
        (9660, "2 h 41 min"),
    ],
)
def test_a_span_of_time_is_read_by_people(seconds, text):
    assert duration(seconds) == text


def test_lines_tell_rates_and_the_time_left_and_come_now_and_then(monkeypatch, caplog):
    clock = iter([0.0, 9.0, 11.0, 11.0, 40.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "rayembed"):
        shown = Progress(logger, "vectors", 100, unit="rows", done=20)
        for amount, tokens in ((10, 60), (12, 50), (58, 290)):
            shown.add(amount, tokens=tokens)
    assert [record.message for record in caplog.records] == [
        "vectors: 42 of 100 rows (42%), 2.0 rows/s, 10.0 tokens/s, about 29 s left",
        "vectors: 100 of 100 rows (100%), 2.0 rows/s, 10.0 tokens/s, in 40 s",
    ]


def test_without_a_total_only_the_amount_is_told(monkeypatch, caplog):
    clock = iter([0.0, 10.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "rayembed"):
        Progress(logger, "plan", unit="steps").add(1500)
    assert [record.message for record in caplog.records] == ["plan: 1,500 steps, 150.0 steps/s"]
