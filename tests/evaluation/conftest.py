"""Tiny built sources and an engine that needs no model."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayembed.common.ray_work import ActorPool
from rayembed.contract import Contract
from rayembed.engine.engine import Encoded
from rayembed.evaluation import catalogue, run
from rayembed.evaluation.results import ModelRecord, TaskRecord
from rayembed.evaluation.shards import ShardEncoder
from rayembed.evaluation.units import UnitQueue, task_units, text_sets
from rayembed.evaluation.worker import EvaluationWorker
from rayembed.records.schema import LABEL_SCHEMA, PAIR_SCHEMA, SCORE_SCHEMA, document_id

DIMENSIONS = 32


class WordEngine:
    """Bag-of-words vectors from hashed words: deterministic, and equal words make texts similar."""

    dimensions = DIMENSIONS
    precision = "fp32"

    def __init__(self, digest: str = "0" * 64, instructions: dict[str, str] | None = None):
        self.digest = digest
        self.contract = Contract(instructions=instructions or {})
        self.calls: list[tuple[str | None, list[str]]] = []

    def encode(self, texts, *, instruction=None, dimensions=None, show_progress=False):
        self.calls.append((instruction, list(texts)))
        vectors = np.stack([self._vector(text) for text in texts]).astype(np.float32)
        return Encoded(vectors, [len(text) for text in texts], [False] * len(texts))

    def _vector(self, text: str) -> np.ndarray:
        total = np.full(DIMENSIONS, 1e-3)
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(f"{self.digest}{word}".encode()).digest()[:4])
            total += np.random.default_rng(seed).standard_normal(DIMENSIONS)
        return total / np.linalg.norm(total)


def units_of(candidate, catalogue, tasks, **sharding):
    """Units of work of the tasks, in shards of `shard_tokens` where that is given."""
    return [
        unit
        for reference in catalogue.select(tasks=tasks).references
        for unit in task_units(
            candidate, reference, text_sets(catalogue.load(reference)), max_length=512, **sharding
        )
    ]


def pool(units, start_actor, actors, **options):
    """Actors that do units of work as an evaluation lets them do it."""
    return ActorPool("evaluation", UnitQueue(units), start_actor, actors, try_again=False, **options)


class WordWorker(EvaluationWorker):
    """An evaluation actor that loads a word engine for any candidate."""

    def _encoder(self, candidate):
        if self._loaded is None:
            engine = WordEngine(candidate.digest)
            encoder = ShardEncoder(engine, candidate.label, self.setup.policy, self.setup.output)
            self._loaded = candidate, encoder
        return self._loaded[1]


def write_split(data_dir: Path, source: str, split: str, rows: list[dict], schema: pa.Schema) -> None:
    folder = data_dir / source
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{split}.parquet")


def pair(query: str, positive: str, source: str = "python-docstrings") -> dict:
    return {
        "query": query,
        "positives": [positive],
        "negatives": [],
        "dataset": source,
        "task_type": "retrieval",
        "query_id": document_id(query + positive),
        "document_ids": [document_id(positive)],
    }


def labelled(text: str, label: str, source: str = "vader-tweets") -> dict:
    return {
        "text": text,
        "label": label,
        "dataset": source,
        "task_type": "classification",
        "text_id": document_id(text),
        "group": document_id(text),
    }


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, a label and a score source with a handful of rows each."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [pair(f"sort the list number {n}", f"def sort_{n}(): sort list number {n}") for n in range(20)]
    write_split(folder, "python-docstrings", "test", pairs, PAIR_SCHEMA)
    for split in ("train", "test"):
        rows = [labelled(f"{split} good fine {n}", "positive") for n in range(20)]
        rows += [labelled(f"{split} bad awful {n}", "negative") for n in range(20)]
        write_split(folder, "vader-tweets", split, rows, LABEL_SCHEMA)
    words = ["cat", "dog", "cat dog", "car", "cat car", "dog car house"]
    scores = [
        {
            "sentence1": "cat",
            "sentence2": word,
            "score": 10.0 - n,
            "dataset": "wordsim353",
            "task_type": "sts",
        }
        for n, word in enumerate(words)
    ]
    write_split(folder, "wordsim353", "test", scores, SCORE_SCHEMA)
    return folder


@pytest.fixture
def engines(monkeypatch, data_dir) -> dict[str, WordEngine]:
    """Two checkpoints, "good" and "base", that load as word engines; sources count as built."""
    loaded = {name: WordEngine(digest=name * 16) for name in ("good", "base")}
    monkeypatch.setattr(run, "read_manifest", lambda folder: {"digest": loaded[folder.name].digest})
    monkeypatch.setattr(run, "contract_of", lambda candidate: loaded[candidate.checkpoint.name].contract)
    monkeypatch.setattr(catalogue, "build_source", lambda name, data_dir: data_dir / name)
    monkeypatch.setattr(
        "rayembed.evaluation.worker.Engine.load", lambda checkpoint, precision: loaded[checkpoint.name]
    )
    return loaded


TASK_TYPES = {"SciFact": "Retrieval", "STS12": "STS", "Banking77Classification": "Classification"}


def model_record(label: str, shift: float = 0.0) -> ModelRecord:
    tasks = []
    for number, (name, kind) in enumerate(TASK_TYPES.items()):
        samples = {} if kind == "STS" else {str(n): 0.4 + n / 100 + shift for n in range(20)}
        score = sum(samples.values()) / len(samples) if samples else 0.5 + shift
        instructions = {"query": "Find <it>", "document": None, "origin": "mteb"}
        overlap = "trained on a source named scifact" if number == 0 else None
        tasks.append(TaskRecord(name, kind, "main", score, samples, instructions, "r1", overlap))
    return ModelRecord(label, label * 16, "MTEB(eng, v1)", tuple(tasks), {"mteb": "2.26"})
