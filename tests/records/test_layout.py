"""Folders, hub data sets and stores: which files are read, or the sentence that refuses them."""

# ruff: noqa: E501  # a table is easier to read with a case on a line

import json
import math

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayembed.common.errors import DataError, ResourceError
from rayembed.config.data import UserSourceConfig
from rayembed.data.sample import sample_source
from rayembed.records import locations

PAIR = {"query": "q", "positive": "p"}
ROW = f"{json.dumps(PAIR)}\n"
LAYOUTS = {
    # files, settings, files that are read or a text of the refusal
    "shards": (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
                "data/test-00000-of-00001.parquet"], {"split": "train"}, "train-0000"),
    "one file a split": (["train.parquet", "test.parquet"], {"split": "dev"}, "!no split 'validation'"),
    "none chosen": (["train.jsonl", "dev.jsonl"], {}, "!has the splits train, validation; choose one with split"),
    "all": (["train.jsonl", "test.jsonl"], {"split": "all"}, ""),
    "names of splits": (["my-dev.jsonl", "my_train.jsonl"], {"split": "validation"}, "my-dev"),
    "converted": (["default/train/0000.parquet", "default/test/0000.parquet"], {"split": "test"}, "default/test"),
    "configurations": (["en/train.jsonl", "de/train.jsonl"], {"split": "train"},
                       "!has the configurations de, en; choose one with config"),
    "configuration": (["en/train.jsonl", "en/test.jsonl", "de/train.jsonl"], {"split": "train", "config": "en"},
                      "en/train.jsonl"),
    "configuration in the name": (["sts-train.jsonl", "nli-train.jsonl"], {"config": "nli"}, "nli-"),
    "numbered configurations": (["v1-train.jsonl", "v2-train.jsonl"], {},
                                "!has the configurations v1, v2; choose one with config"),
    "configurations in other scripts": (["日本語-train.jsonl", "中文-train.jsonl"], {"config": "中文"}, "中文"),
    "numbered shards": (["train1.jsonl", "train2.jsonl", "test.jsonl"], {"split": "train"}, "train"),
    "special splits": (["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"],
                       {"split": "train"}, "!no split 'train'; it has the splits train_gen, train_sft"),
    "half a download": (["data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet"], {},
                        "!is not complete: data/train-00001-of-00003 missing; download all"),
    "half of a split that is not chosen": (["train-00000-of-00001.parquet", "test-00000-of-00002.parquet"],
                                           {"split": "train"}, "train"),
    "half of what has no split": (["part-00001-of-00002.jsonl", "notes.txt"], {}, "!part-00000-of-00002 missing"),
    "shards from one": (["train-00001-of-00002-9f.jsonl", "train-00002-of-00002-3a.jsonl"], {}, "train"),
    "one shard by name": (["train-00000-of-00003.jsonl"], {"path": "train-00000-of-00003.jsonl"}, "train"),
    "nothing": ([], {}, "!has nothing to read as format auto"),
    "shards by pattern": (["train-00000-of-00003.jsonl"], {"path": "train-*"}, "train"),
    "plain folder": (["2024/a.jsonl", "2025/latest.jsonl"], {}, "20"),
    "bookkeeping": (["a.jsonl", "_SUCCESS.json", "dataset_info.json", ".cache/b.jsonl"], {}, "a.jsonl"),
    "Delta": (["_delta_log/00.json", "part-0.parquet"], {"format": "parquet"}, "!files of a table of Delta"),
    "folder of tables": (["a/_delta_log/0.json", "a/part-0.parquet"], {}, "!files of a table of Delta"),
    "split of a table": (["_delta_log/00.json", "part-0.parquet"], {"split": "train"}, "!remove split and config"),
    "no split": (["a.jsonl"], {"split": "test"}, "!no file that is named after a split"),
    "next to a card": (["README.md", "LICENSE", "cover.png", "data/train.jsonl"], {}, "data/train"),
    "next to another format": (["train.jsonl", "test.parquet"], {"format": "json-lines"}, "train"),
    "pattern": (["a1.jsonl", "a2.jsonl", "b1.jsonl"], {"path": "a*.jsonl"}, "a"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_gives_its_split_or_is_refused_with_the_list(tmp_path, name):
    files, settings, expected = LAYOUTS[name]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist([PAIR]), tmp_path / file)
        else:
            (tmp_path / file).write_text(ROW)
    settings = settings | {"path": str(tmp_path / settings.get("path", ""))}
    if expected.startswith("!"):
        with pytest.raises(DataError, match=expected[1:]):
            sample_source("mine", UserSourceConfig(**settings), 1)
        return
    found = list(sample_source("mine", UserSourceConfig(**settings), 1).files)
    assert found == sorted(file for file in files if file.rpartition("/")[2][0] not in "._"
                           and not file.startswith(".") and "info" not in file
                           and file.startswith(("data/" + expected, expected)))  # fmt: skip


CARD = """---
configs:
- config_name: pair
  data_files:
  - {split: train, path: pair/tr*}
  - {split: test, path: [pair/held.jsonl]}
- config_name: score
  data_files: score.jsonl
- config_name: folder
  data_dir: ./test_suite/
- config_name: both
  data_dir: pair
  data_files: [{split: train, path: h*.jsonl}, {split: test, path: later/*.jsonl}]
- {config_name: gone, data_dir: gone}
---
"""


def test_hub_data_sets_come_from_a_folder_or_the_cache_as_their_card_says(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshot"
    (snapshot / "pair").mkdir(parents=True)
    (snapshot / "README.md").write_text(CARD)
    (snapshot / "test_suite").mkdir()
    for name in ("pair/tr1.jsonl", "pair/tr2.jsonl", "pair/held.jsonl", "score.jsonl", "test_suite/a.jsonl"):
        (snapshot / name).write_text(ROW)
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **kw: asked.append(name) or str(snapshot)
    )
    source = UserSourceConfig(hub="someone/pairs", config="pair", split="train")
    assert list(sample_source("mine", source, 1).files) == ["pair/tr1.jsonl", "pair/tr2.jsonl"]
    assert asked == ["someone/pairs"]
    with pytest.raises(DataError, match="someone/pairs has the configurations both, folder, gone, pair, s"):
        sample_source("mine", UserSourceConfig(hub="someone/pairs"), 1)
    for config, file in (("folder", "test_suite/a.jsonl"), ("both", "pair/held.jsonl")):
        source = UserSourceConfig(hub="someone/pairs", config=config, split="train")
        assert list(sample_source("mine", source, 1).files) == [file]
    for choice, missing in (
        ({"config": "both", "split": "test"}, "pair/later/"),
        ({"config": "gone"}, "gone/"),
    ):
        with pytest.raises(DataError, match=f"someone/pairs is not complete: {missing}.* missing; download"):
            sample_source("mine", UserSourceConfig(hub="someone/pairs", **choice), 1)
    by_folder = UserSourceConfig(hub=str(snapshot), config="pair", split="test")
    assert list(sample_source("mine", by_folder, 1).files) == ["pair/held.jsonl"]


def test_a_hub_data_set_that_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def no_network(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", no_network)
    with pytest.raises(ResourceError, match=r"nobody/nothing is not in the cache.*\(no network\).*give path"):
        locations.hub_location("nobody/nothing", None)
    (tmp_path / "README.md").write_text(CARD)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
        with pytest.raises(ResourceError, match="the hub does not answer"):
            locations.hub_location("nobody/card-only", None)
    with pytest.raises(DataError, match="no name of a data set"):
        locations.hub_location("a/b/c", None)


def test_a_store_that_only_fsspec_knows(tmp_path):
    import fsspec

    with fsspec.open("memory://bucket/train.jsonl", "wt") as stream:
        stream.write(ROW)
    (row,) = sample_source("mine", UserSourceConfig(path="memory://bucket"), 3).rows
    assert row["positives"] == ["p"]


def test_a_saved_dictionary_of_data_sets_has_no_caches(tmp_path):
    whole = datasets.Dataset.from_dict({"query": ["q"], "positive": ["p"], "score": [math.nan]})
    datasets.DatasetDict(train=whole, extra=whole).save_to_disk(tmp_path / "both")
    (tmp_path / "both" / "train" / "cache-0123.arrow").write_bytes(b"cache")
    source = UserSourceConfig(path=str(tmp_path / "both"), split="extra")
    assert list(sample_source("mine", source, 1).files) == ["extra/data-00000-of-00001.arrow"]
