"""Tables that keep deleted rows in their files."""

import pyarrow as pa
import pytest

from rayembed.common.errors import DataError, ResourceError
from rayembed.config.data import UserSourceConfig
from rayembed.data import build
from rayembed.data.store import read_split
from rayembed.engine.bulk.inputs import find_files
from rayembed.records import find_parts, tables

ROWS = pa.table(
    {
        "query": [f"q{row}" for row in range(12)],
        "positive": [f"p{row}" for row in range(12)],
        "cluster": ["even", "odd"] * 6,
    }
)


def delta(folder):
    deltalake = pytest.importorskip("deltalake")
    deltalake.write_deltalake(str(folder), ROWS, partition_by=["cluster"])
    deltalake.DeltaTable(str(folder)).delete("query = 'q3'")


def lance(folder):
    library = pytest.importorskip("lance")
    library.write_dataset(ROWS, str(folder), max_rows_per_file=5).delete("query = 'q3'")


def iceberg(folder):
    pytest.importorskip("pyiceberg")
    memory = pytest.importorskip("pyiceberg.catalog.memory")
    catalog = memory.InMemoryCatalog("test", warehouse=folder.parent.as_uri())
    catalog.create_namespace("some")
    table = catalog.create_table("some.table", ROWS.schema, location=folder.as_uri())
    table.append(ROWS)
    table.delete("query = 'q3'")


@pytest.mark.parametrize(("write", "pieces"), [(delta, 2), (lance, 3), (iceberg, 1)])
def test_present_rows_are_read_and_deleted_ones_are_not(tmp_path, monkeypatch, write, pieces):
    folder = tmp_path / "table"
    write(folder)
    monkeypatch.setattr(build, "on_all_cpus", lambda function, jobs, title, *, here: map(function, jobs))
    source = UserSourceConfig(path=str(folder))
    assert len(find_parts(source, tmp_path)) == pieces
    build.build_user_source("mine", source, tmp_path / "data")
    rows = (
        read_split(tmp_path / "data", "mine", "train").select(["query", "positives", "cluster"]).to_pylist()
    )
    assert sorted(row["query"] for row in rows) == sorted({f"q{row}" for row in range(12)} - {"q3"})
    for row in rows:
        number = int(row["query"][1:])
        assert (row["positives"], row["cluster"]) == ([f"p{number}"], ["even", "odd"][number % 2])
    with pytest.raises(DataError, match="also hold rows that were deleted"):
        find_files(folder)


@pytest.mark.parametrize(
    ("name", "mark"), [("Delta", "_delta_log/0.json"), ("Lance", "_versions/1.manifest")]
)
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, name, mark):
    (tmp_path / "table" / mark).parent.mkdir(parents=True)
    (tmp_path / "table" / mark).write_text("{")
    source = UserSourceConfig(path=str(tmp_path / "table"))

    def missing(package):
        raise ImportError(f"No module named {package!r}")

    with monkeypatch.context() as patched:
        patched.setattr(tables, "import_module", missing)
        with pytest.raises(ResourceError, match=rf"table of {name} and needs .*rayembed\[{name.lower()}\]"):
            find_parts(source, tmp_path)
    pytest.importorskip({"Delta": "deltalake", "Lance": "lance"}[name])
    with pytest.raises(DataError, match=f"table cannot be read as a table of {name} "):
        find_parts(source, tmp_path)
