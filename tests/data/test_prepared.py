import numpy as np

from rayembed.data.prepared import PreparedRows, write_index, write_rows
from rayembed.records.schema import document_id, pair_row, to_table

ROWS = [
    pair_row("q0", ["p0", "shared"], ["n0"], dataset="d", task_type="t", cluster="red"),
    pair_row("q1", ["shared"], [], dataset="d", task_type="t"),
    pair_row("q2", ["q0"], ["n1", "n2"], dataset="d", task_type="t", cluster="blue"),
    pair_row("q3", ["p3"], [], dataset="d", task_type="t", cluster="red"),
    pair_row("q4", ["p4", "p5"], ["n2"], dataset="d", task_type="t"),
]
TABLE = to_table(ROWS, "pairs")


def opened(tmp_path, monkeypatch) -> PreparedRows:
    monkeypatch.setattr("rayembed.data.prepared.ROWS_PER_BATCH", 2)
    files = [
        write_rows([TABLE.slice(1, 2), TABLE.slice(3, 1)], tmp_path / "a.arrow"),
        write_rows([TABLE.slice(4)], tmp_path / "b.arrow"),
    ]
    write_index(files, tmp_path / "rows.json")
    return PreparedRows.open(tmp_path / "rows.json")


def test_any_row_is_at_hand(tmp_path, monkeypatch):
    rows = opened(tmp_path, monkeypatch)
    assert len(rows) == 4
    wanted = [{name: ROWS[number][name] for name in ("negatives", "query")} for number in (4, 1, 3, 2, 2)]
    assert rows.take(np.array([3, 0, 2, 1, 1]), ["negatives", "query"]) == wanted
    assert rows.rows_without_negatives() == 2


def test_keys_name_the_texts_and_the_cluster_of_each_row(tmp_path, monkeypatch):
    rows = opened(tmp_path, monkeypatch)
    found: list[set[int]] = [set() for _ in range(4)]
    for numbers, keys in rows.clash_keys():
        assert (np.diff(numbers) >= 0).all()
        for number, key in zip(numbers.tolist(), keys.tolist(), strict=True):
            found[number].add(key)
    for number, row in enumerate(ROWS[1:]):
        texts = {int(document_id(text), 16) for text in [row["query"], *row["positives"]]}
        clusters = found[number] - texts
        assert texts <= found[number]
        assert len(clusters) == (row["cluster"] is not None)
    [red] = found[2] - {int(document_id(text), 16) for text in ("q3", "p3")}
    other = PreparedRows(to_table([ROWS[0] | {"dataset": "e"}, ROWS[0]], "pairs").to_batches(max_chunksize=1))
    (_, elsewhere), (_, here) = other.clash_keys()
    assert red in here.tolist()
    assert red not in elsewhere.tolist()  # clusters are told apart by their dataset
