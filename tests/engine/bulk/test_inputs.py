import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayembed.common.errors import DataError
from rayembed.engine.bulk import inputs
from rayembed.engine.bulk.inputs import find_files, index_files
from rayembed.engine.bulk.rows import kept_schema, read_rows


def write_parquet(path, start, stop, *, row_group_size=None, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {"text": [f"text {n}" for n in range(start, stop)], "id": list(range(start, stop))} | columns
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def write_lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_folder_gives_its_files_by_name_without_hidden_ones(tmp_path):
    for name in ("b.parquet", "a.parquet", "deep/c.parquet", ".part-1.parquet", "_log/d.parquet"):
        write_parquet(tmp_path / name, 0, 1)
    (tmp_path / "readme.txt").write_text("no rows")
    assert [file.name for file in find_files(tmp_path)] == ["a.parquet", "b.parquet", "deep/c.parquet"]
    found = [file.uri for file in find_files(tmp_path / "[ab].parquet")]
    assert found == [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]


@pytest.mark.parametrize("interval", [2, 1024])
def test_any_range_of_rows_is_read_across_files_of_both_kinds(tmp_path, monkeypatch, interval):
    monkeypatch.setattr(inputs, "ROWS_PER_OFFSET", interval)
    monkeypatch.setattr("rayembed.engine.bulk.rows.ROWS_PER_OFFSET", interval)
    monkeypatch.setattr("rayembed.engine.bulk.rows._ROWS_PER_READ", 3)
    write_parquet(tmp_path / "1.parquet", 0, 10, row_group_size=4)
    write_lines(tmp_path / "2.jsonl", [{"id": n, "text": f"text {n}"} for n in range(10, 15)] + ["", "  "])
    write_parquet(tmp_path / "3.parquet", 15, 15)
    write_parquet(tmp_path / "4.parquet", 15, 20)
    rows = index_files(find_files(tmp_path))
    assert len(rows) == 20
    kept = kept_schema(rows, "text", ["id"])
    for start in range(20):
        for stop in range(start + 1, 21):
            found = read_rows(rows, start, stop, "text", kept)
            assert found.texts == [f"text {n}" for n in range(start, stop)]
            assert found.columns["row"].to_pylist() == list(range(start, stop))
            assert found.columns["id"].to_pylist() == list(range(start, stop))
            assert found.problems == {}
    assert rows.place(12) == f"row 3 of {tmp_path / '2.jsonl'}"


def test_files_of_a_store_are_read_as_those_of_the_disk(tmp_path):
    import fsspec

    write_parquet(tmp_path / "1.parquet", 0, 4, row_group_size=2)
    write_lines(tmp_path / "2.jsonl", [{"id": n, "text": f"text {n}"} for n in range(4, 7)])
    (tmp_path / "3.csv").write_text("text\ntext 7\n")
    (tmp_path / "notes.txt").write_text("no rows")
    fsspec.filesystem("memory").put(str(tmp_path), "/bulk", recursive=True)
    for place, first, stop in (("", 0, 8), ("/*.parquet", 0, 4), ("/2.jsonl", 4, 7)):
        rows = index_files(find_files(f"memory://bulk{place}"))
        found = read_rows(rows, 0, len(rows), "text", kept_schema(rows, "text", []))
        assert found.texts == [f"text {number}" for number in range(first, stop)]
    local = [file.sha256 for file in index_files(find_files(tmp_path)).files]
    assert [file.sha256 for file in index_files(find_files("memory://bulk")).files] == local


def test_each_kind_of_bad_row_is_told_apart(tmp_path):
    lines = [
        {"text": "good", "id": 1},
        {"text": None, "id": 2},
        {"id": 3},
        {"text": " \n", "id": 4},
        {"text": 5, "id": 5},
        "[6]",
        '{"text": "cut',
        '{"text": "\\ud800"}',
    ]
    rows = index_files(find_files(write_lines(tmp_path / "rows.jsonl", lines)))
    found = read_rows(rows, 0, 8, "text", kept_schema(rows, "text", ["id"]))
    assert found.problems == {
        1: "no text",
        2: "no text",
        3: "empty text",
        4: "text is not a string",
        5: "not a JSON object",
        6: "not a JSON object",
        7: "half a Unicode character",
    }
    assert found.columns["id"].to_pylist() == [1, 2, 3, 4, 5, None, None, None]


def test_a_digest_is_taken_again_only_when_size_or_time_differ(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", 0, 3)
    first = index_files(find_files(path))
    digest = first.files[0].sha256
    assert len(digest) == 64
    known = [file.description() for file in first.files]
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "_digest", lambda path: pytest.fail("read again"))
        assert index_files(find_files(path), known).files[0].sha256 == digest
    write_parquet(path, 1, 4)
    assert index_files(find_files(path), known).files[0].sha256 != digest


def test_unusable_inputs_are_refused_with_the_remedy(tmp_path):
    good = write_parquet(tmp_path / "good.parquet", 0, 3)
    (tmp_path / "notes.md").write_text("text")
    (tmp_path / "torn.parquet").write_bytes(good.read_bytes()[:-10])
    (tmp_path / "empty.jsonl").write_text("\n")
    for pattern, message in [
        (tmp_path / "*.*", r"notes\.md does not end in"),
        (tmp_path / "nothing.parquet", "does not exist"),
        (tmp_path / "notes.md", "does not end in"),
    ]:
        with pytest.raises(DataError, match=message):
            find_files(pattern)
    with pytest.raises(DataError, match="not a complete Parquet file"):
        index_files(find_files(tmp_path / "torn.parquet"))
    with pytest.raises(DataError, match="has no rows"):
        index_files(find_files(tmp_path / "empty.jsonl"))


def test_columns_must_be_there_and_have_one_type(tmp_path):
    write_parquet(tmp_path / "1.parquet", 0, 3)
    write_parquet(tmp_path / "2.parquet", 3, 6, id=pa.array(["a", "b", "c"]))
    rows = index_files(find_files(tmp_path))
    assert kept_schema(rows, "text", []) == pa.schema([])
    for text_column, keep, message in [
        ("body", [], r"no column 'body'; it has id, text"),
        ("id", [], "holds int64, not texts"),
        ("text", ["url"], "no column 'url'"),
        ("text", ["id"], r"'id' is string in .*2\.parquet and int64 in .*1\.parquet"),
    ]:
        with pytest.raises(DataError, match=message):
            kept_schema(rows, text_column, keep)


def test_a_value_of_another_type_in_json_lines_is_named(tmp_path):
    lines = [{"text": "a", "id": n} for n in (1, 2, "three")]
    rows = index_files(find_files(write_lines(tmp_path / "rows.jsonl", lines)))
    with pytest.raises(DataError, match="mixes types"):
        kept_schema(rows, "text", ["id"])
    with pytest.raises(
        DataError, match=r"'id' is int64 in the first rows, and another type between rows 1 and 3"
    ):
        read_rows(rows, 0, 3, "text", pa.schema([("id", pa.int64())]))


def test_files_of_every_format_are_read_by_ranges(tmp_path):
    (tmp_path / "1.csv").write_text("text,id\ntext 0,a\ntext 1,\n")
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(b'{"text": "text 2", "id": "c"}\n'))
    (tmp_path / "3.json").write_text(json.dumps([{"text": f"text {n}", "id": "d"} for n in (3, 4)], indent=1))
    rows = index_files(find_files(tmp_path))
    kept = kept_schema(rows, "text", ["id"])
    for start in range(5):
        found = read_rows(rows, start, 5, "text", kept)
        assert found.texts == [f"text {n}" for n in range(start, 5)]
        assert found.columns["id"].to_pylist() == ["a", None, "c", "d", "d"][start:]


def test_broken_texts_and_kept_values_are_rows_with_a_problem(tmp_path):
    lines = write_lines(
        tmp_path / "a.jsonl", [{"text": "a", "title": "\ud83d", "n": 1}, {"text": "b", "n": 2.0}]
    )
    rows = index_files(find_files(lines))
    found = read_rows(rows, 0, 2, "text", kept_schema(rows, "text", ["title"]))
    assert found.problems == {0: "half a Unicode character in 'title'"}
    later = index_files(find_files(write_lines(tmp_path / "b.jsonl", [{"text": "a", "n": 2.5}])))
    with pytest.raises(DataError, match=r"'n' is int64 in the first rows.*2\.5 is no whole number"):
        read_rows(later, 0, 1, "text", pa.schema([("n", pa.int64())]))
    bad = pa.array([b"caf\xe9", b"q"]).cast(pa.binary())
    texts = pa.StringArray.from_buffers(2, *bad.buffers()[1:])
    pq.write_table(pa.table({"text": texts}), tmp_path / "c.parquet")
    rows = index_files(find_files(tmp_path / "c.parquet"))
    assert read_rows(rows, 0, 2, "text", pa.schema([])).problems == {0: "text is not UTF-8"}


NESTED = [  # the kept value of the first 1,000 rows, that of a later one, what the error says of it
    ({"a": 1}, {"a": 1, "b": 2}, "the field b is new"),
    ({"a": {"n": [1]}}, {"a": {"n": [2, 0.5]}}, r"0\.5 is no whole number"),
    ([1, 2], [1.5], r"1\.5 is no whole number"),
    ("x", json.loads("[" * 60 + "]" * 60), "nested more than 50 deep"),
]


@pytest.mark.parametrize(("first", "later", "message"), NESTED)
def test_nothing_is_cut_off_inside_kept_values(tmp_path, first, later, message):
    rows = [{"text": "t", "k": first}] * 1000
    index = index_files(find_files(write_lines(tmp_path / "a.jsonl", [*rows, {"text": "t", "k": later}])))
    kept = kept_schema(index, "text", ["k"])
    with pytest.raises(DataError, match=message):
        read_rows(index, 0, 1001, "text", kept)


def test_texts_stored_as_bytes_and_numbers_beyond_64_bits(tmp_path):
    pq.write_table(pa.table({"text": [b"one", b"\xff"]}), tmp_path / "a.parquet")
    rows = index_files(find_files(tmp_path / "a.parquet"))
    found = read_rows(rows, 0, 2, "text", kept_schema(rows, "text", []))
    assert (found.texts[0], found.problems) == ("one", {1: "text is not UTF-8"})
    for line, message in (
        ('{"text": "t", "k": 99999999999999999999}', "'k' of .* too large"),
        ('{"a": ' + "[" * 9000, "none of"),
    ):
        rows = index_files(find_files(write_lines(tmp_path / "b.jsonl", [line])))
        with pytest.raises(DataError, match=message):
            kept_schema(rows, "text", ["k"])
