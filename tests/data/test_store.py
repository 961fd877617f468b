import json

import pytest

from rayembed.common.errors import DataError, ResourceError
from rayembed.data import store
from rayembed.data.sources import SOURCES
from rayembed.data.sources.base import BuiltInSource, LabelExample, PairExample


def make_source(examples, version=1):
    return BuiltInSource(
        name="tiny",
        title="Tiny",
        kind="pairs",
        task_type="retrieval",
        origin="a test",
        licence="none",
        terms="None.",
        requires="nothing",
        read=lambda downloads: examples,
        version=version,
    )


@pytest.fixture
def examples():
    return [PairExample(str(group), f"query {group}", f"document {group} with words") for group in range(60)]


@pytest.fixture
def tiny(monkeypatch, examples):
    monkeypatch.setitem(SOURCES, "tiny", make_source(examples))


@pytest.mark.usefixtures("tiny")
def test_build_writes_splits_and_card(tmp_path):
    folder = store.build_source("tiny", tmp_path)
    card = json.loads((folder / "card.json").read_text())
    tables = {split: store.read_split(tmp_path, "tiny", split) for split in ("train", "dev", "test")}
    assert card["rows"] == {split: table.num_rows for split, table in tables.items()}
    assert sum(card["rows"].values()) == 60
    assert card["words"]["positives"] == {"p5": 4, "p50": 4, "p95": 4, "p100": 4}
    assert card["licence"] == "none"
    assert set(card["sha256"]) == {"train.parquet", "dev.parquet", "test.parquet"}
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.usefixtures("tiny")
def test_build_is_idempotent_until_the_builder_changes(tmp_path, monkeypatch, examples):
    folder = store.build_source("tiny", tmp_path)
    before = (folder / "train.parquet").stat().st_ino
    assert store.build_source("tiny", tmp_path) == folder
    assert (folder / "train.parquet").stat().st_ino == before
    monkeypatch.setitem(SOURCES, "tiny", make_source(examples[:30], version=2))
    store.build_source("tiny", tmp_path)
    assert sum(json.loads((folder / "card.json").read_text())["rows"].values()) == 30
    (folder / "card.json").write_text("{")
    store.build_source("tiny", tmp_path)
    assert json.loads((folder / "card.json").read_text())["builder_version"] == 2


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupted():
        yield PairExample("1", "query", "document")
        raise ResourceError("no network")

    monkeypatch.setitem(SOURCES, "tiny", make_source([]))
    with pytest.raises(DataError, match="tiny gave no rows"):
        store.build_source("tiny", tmp_path)
    monkeypatch.setitem(SOURCES, "tiny", make_source(interrupted()))
    with pytest.raises(ResourceError, match="no network"):
        store.build_source("tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_repeats_are_dropped_with_their_reason():
    examples = [
        PairExample("a", "q1", "d1"),
        PairExample("a", "q2", "d1"),
        PairExample("a", "q1", "d3"),
        PairExample("b", "q3", "d1"),
        LabelExample("a", "t1", "x"),
        LabelExample("b", "t1", "y"),
    ]
    kept, dropped = store.drop_repeats(examples)
    assert kept == [examples[0], examples[1], examples[4]]
    assert dropped == {"repeated query": 1, "document of another group": 1, "repeated text": 1}


@pytest.mark.parametrize("name", ["wordnet-glosses", "wordnet-lexnames"])
def test_no_text_or_group_is_in_two_splits(tmp_path, name):
    store.build_source(name, tmp_path)
    tables = [store.read_split(tmp_path, name, split) for split in ("train", "dev", "test")]
    for column in {"query_id", "document_ids", "text_id", "group"} & set(tables[0].column_names):
        keys = [table[column].combine_chunks() for table in tables]
        sets = [set((key.flatten() if column == "document_ids" else key).to_pylist()) for key in keys]
        assert sum(map(len, sets)) == len(set.union(*sets))


@pytest.mark.usefixtures("tiny")
def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no built-in source 'nothing'; choose one of python-docstrings"):
        store.build_source("nothing", tmp_path)
    with pytest.raises(DataError, match="run `rayembed data build tiny"):
        store.read_split(tmp_path, "tiny", "train")
    folder = store.build_source("tiny", tmp_path)
    with pytest.raises(DataError, match="no split 'validation'; it has dev, test, train"):
        store.read_split(tmp_path, "tiny", "validation")
    content = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"train\.parquet is not a complete Parquet file"):
        store.read_split(tmp_path, "tiny", "train")
