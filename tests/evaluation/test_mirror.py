import json
from pathlib import Path

import huggingface_hub
import mteb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayembed.common.errors import DataError, ResourceError
from rayembed.common.paths import resolve
from rayembed.evaluation.catalogue import Catalogue
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from rayembed.evaluation.mirror import Mirror
from tests.evaluation.conftest import WordEngine

CONFIGURATIONS = """---
configs:
- config_name: corpus
  data_files: corpus.parquet
- config_name: queries
  data_files: queries.parquet
- config_name: default
  data_files:
  - split: test
    path: qrels.parquet
---
"""


def hub(repo_id: str, local_dir: Path, **_) -> None:
    """What the hub would give for the two data sets of this test."""
    if "stsbenchmark" in repo_id:
        rows = {
            "sentence1": ["a b", "c d", "e f"],
            "sentence2": ["a b", "c x", "y z"],
            "score": [5.0, 3.0, 0.0],
        }
        pq.write_table(pa.table(rows), local_dir / "test.parquet")
    elif "scifact" in repo_id:
        (local_dir / "README.md").write_text(CONFIGURATIONS)
        documents = {"_id": ["1", "2"], "title": ["", ""], "text": ["cats sleep", "dogs bark"]}
        pq.write_table(pa.table(documents), local_dir / "corpus.parquet")
        pq.write_table(pa.table({"_id": ["q"], "text": ["cats sleep"]}), local_dir / "queries.parquet")
        judged = {"query-id": ["q"], "corpus-id": ["1"], "score": [1]}
        pq.write_table(pa.table(judged), local_dir / "qrels.parquet")
    else:
        raise OSError("no network")


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    Mirror(tmp_path / "mirror").make([mteb.get_task("STSBenchmark"), mteb.get_task("SciFact")])
    return tmp_path / "mirror"


def test_registry_tasks_are_scored_from_the_mirror(mirror):
    catalogue = Catalogue(mirror.parent, mirror=mirror)
    references = catalogue.select(tasks=["STSBenchmark", "SciFact"]).references
    catalogue.prepare(references)
    for reference in references:
        task = catalogue.load(reference)
        result = evaluate_task(EngineEncoder(WordEngine(), "fake"), task)
        assert result.get_score() == pytest.approx(1.0)
        assert result.dataset_revision == mteb.get_task(reference.name).metadata.dataset["revision"]


def test_a_mirror_in_a_store_serves_every_node(mirror, node, s3, tmp_path):
    stored = resolve(s3.uri("bucket/mirror"))
    Mirror(stored).make([mteb.get_task("STSBenchmark")])
    node("b")
    catalogue = Catalogue(tmp_path, mirror=stored)
    references = catalogue.select(tasks=["STSBenchmark"]).references
    catalogue.prepare(references)
    cache = node("c")
    task = catalogue.load(references[0])
    assert Path(task.metadata.dataset["path"]).is_relative_to(cache)
    assert evaluate_task(EngineEncoder(WordEngine(), "fake"), task).get_score() == pytest.approx(1.0)
    references = catalogue.select(tasks=["SciFact"]).references
    with pytest.raises(DataError, match=r"the mirror s3://.* lacks data: SciFact: no s3://.*mteb__scifact"):
        catalogue.prepare(references)


def test_what_a_mirror_lacks_is_named_before_anything_runs(mirror):
    catalogue = Catalogue(mirror.parent, mirror=mirror)
    references = catalogue.select(tasks=["STSBenchmark", "SciFact", "NFCorpus"]).references
    with pytest.raises(DataError, match=r"lacks data: NFCorpus: no .*mteb__nfcorpus.*rayembed mirror make"):
        catalogue.prepare(references)
    corpus = next(mirror.rglob("corpus.parquet"))
    corpus.write_bytes(corpus.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"SciFact: .*corpus.parquet is missing or cut short"):
        catalogue.prepare(references[:2])


def test_a_missing_split_is_named(mirror):
    folder = next(mirror.rglob("test.parquet")).parent
    (folder / "test.parquet").rename(folder / "train.parquet")
    manifest = json.loads((folder / "mirror.json").read_text())
    manifest["files"]["train.parquet"] = manifest["files"].pop("test.parquet")
    (folder / "mirror.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="STSBenchmark: subset default has no split test"):
        Mirror(mirror).check([mteb.get_task("STSBenchmark")])


def test_making_a_mirror_continues_and_says_what_failed(mirror, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **_: asked.append(repo_id))
    Mirror(mirror).make([mteb.get_task("STSBenchmark")])
    assert asked == []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with pytest.raises(ResourceError, match=r"the data of NFCorpus .*no network"):
        Mirror(mirror).make([mteb.get_task("NFCorpus")])
    assert not list(mirror.glob("mteb__nfcorpus/*"))
