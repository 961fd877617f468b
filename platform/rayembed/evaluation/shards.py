"""Encoding a task in shards: read the texts of a shard, search it, join what the shards found.

Shapes: Q queries, N documents of a shard, D width of the vectors, K wanted documents a query.
"""

import hashlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rayembed.common.device import resolve_device
from rayembed.common.paths import atomic_file, fetch, here, remove
from rayembed.common.ray_compat import task_texts
from rayembed.contract import Contract
from rayembed.engine.engine import Encoded
from rayembed.evaluation.encoder import ENCODE_OPTIONS, EngineEncoder
from rayembed.evaluation.instructions import InstructionPolicy
from rayembed.evaluation.units import Shard
from rayembed.mining.search import exact_top_k, merged

logger = logging.getLogger(__name__)

FOLDER = "embeddings"
LARGE = 16  # shards of a corpus from which on other tasks are looked at for its texts
_DIGEST_CHARACTERS = 16
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")


def text_digests(texts: Sequence[str]) -> np.ndarray:
    """128-bit content digests, uint8 of shape (texts, 16)."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(texts), 16)


@dataclass(frozen=True)
class EmbeddingStore:
    """The shards of one model under `output`."""

    output: Path
    digest: str
    contract: Contract
    precision: str | None = None

    def task_folder(self, task: TaskMetadata) -> Path:
        """Folder of all shards of one revision of a task."""
        revision = str(task.dataset["revision"])[:_DIGEST_CHARACTERS]
        return self.output / FOLDER / self.digest[:_DIGEST_CHARACTERS] / f"{task.name}-{revision}"

    def path(self, task: TaskMetadata, shard: Shard, instruction: str | None, what: str = "vectors") -> Path:
        """File of one shard; `what` is vectors, or names what was derived from them."""
        made_under = f"{self.contract.model_dump_json()}\n{self.precision}\n{instruction or ''}"
        key = hashlib.sha256(made_under.encode()).hexdigest()[:8]
        name = f"{_place(shard)}-{shard.side}-{key}-{shard.index:05d}-of-{shard.of:05d}.{what}.safetensors"
        return self.task_folder(task) / name

    def near(self, task: TaskMetadata, shard: Shard, instruction: str | None) -> list[Path]:
        """Stored shards, of other tasks too, that may hold texts of a shard of a large corpus.

        Corpora of some tasks are nearly equal: ClimateFEVER has the 5,416,568 documents of FEVER and 25 more.
        Their shards 7 of 332 differ by a few documents at the ends, which shards 6 and 8 hold.
        """
        if shard.of < LARGE:
            return []
        folder = here(self.task_folder(task)).parent
        own = [self.path(task, replace(shard, index=shard.index + step), instruction) for step in (-1, 0, 1)]
        place = len(_place(shard))
        return [path for one in own for path in sorted(folder.glob(f"*/*{one.name[place:]}"))]

    def remove(self, task: TaskMetadata) -> None:
        """Delete the shards of a task that has been scored."""
        remove(self.task_folder(task))


def _place(shard: Shard) -> str:
    return _UNSAFE.sub("_", f"{shard.subset}-{shard.split}")


def may_share(one: Sequence[Shard], other: Sequence[Shard]) -> bool:
    """Whether `EmbeddingStore.near` finds shards of one task for another."""
    large = [
        {shard.of for shard in side if shard.side == "document" and shard.of >= LARGE}
        for side in (one, other)
    ]
    return not large[0].isdisjoint(large[1])


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays so that a reader sees all or none of them."""
    with atomic_file(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays that `write_arrays` wrote; None where there are none or the file is torn."""
    path = fetch(path)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning("%s is torn (%s) and is computed again", path, error)
        return None


class CachedEngine:
    """An engine that keeps the vectors of each list of texts, by texts, contract, weights and instruction.

    A list is what mteb asks for at a time. To score vectors in another form it asks for the same.
    """

    def __init__(self, engine: Any, folder: Path):
        self._engine, self._folder, self.precision = engine, folder, engine.precision
        self.contract, self.digest, self.dimensions = engine.contract, engine.digest, engine.dimensions

    def encode(self, texts: Sequence[str], *, instruction: str | None = None) -> Encoded:
        """As the engine's."""
        # The digest covers the contract.
        made_under = f"{self.digest}\n{self.precision}\n{instruction or ''}\n"
        key = hashlib.sha256(made_under.encode() + text_digests(texts).tobytes()).hexdigest()
        path = self._folder / f"{key[:32]}.safetensors"
        if (stored := read_arrays(path)) is None:
            started = time.perf_counter()
            encoded = self._engine.encode(texts, instruction=instruction)
            stored = {
                "seconds": np.array([time.perf_counter() - started]),
                "vectors": encoded.vectors,
                "token_counts": np.array(encoded.token_counts),
                "truncated": np.array(encoded.truncated),
            }
            write_arrays(path, stored)
        return Encoded(stored["vectors"], stored["token_counts"].tolist(), stored["truncated"].tolist())


def texts_per_second(folder: Path) -> float | None:
    """Rate of one engine at the texts in the folder of a `CachedEngine`; None: there are none."""
    texts, seconds = 0, 0.0
    for path in fetch(folder).glob("*.safetensors"):
        with safe_open(path, framework="numpy") as stored:
            texts += stored.get_slice("token_counts").get_shape()[0]
            seconds += float(stored.get_tensor("seconds")[0])
    return texts / seconds if texts else None


class ShardEncoder(EngineEncoder):
    """An engine encoder that keeps and finds the vectors of shards in a store."""

    def __init__(self, engine: Any, label: str, policy: InstructionPolicy, output: Path):
        super().__init__(engine, label, policy)
        self.store = EmbeddingStore(output, engine.digest, engine.contract, engine.precision)
        self._known: dict[str | None, dict[bytes, np.ndarray]] = {}

    def encode_shard(self, task: mteb.AbsTask, shard: Shard) -> None:
        """Make the vectors of `shard`; a shard of a searched corpus is searched as well.

        What is already stored is not computed again.
        """
        if is_searched(task, shard):
            self._search_shard(task, shard, _rows(task, shard))
        else:
            self._shard_vectors(task, shard)

    def attach(self, task: mteb.AbsTask, shards: Sequence[Shard]) -> None:
        """Answer texts of `shards` from the store from now on; others are computed."""
        self._known = {}
        for shard in shards:
            self._take(self._path(task.metadata, shard), self._instruction(task.metadata, shard))

    def _take(self, path: Path, instruction: str | None) -> None:
        stored = read_arrays(path)
        if stored is not None:
            known = self._known.setdefault(instruction, {})
            known.update(zip(map(bytes, stored["digests"]), stored["vectors"], strict=True))

    def embed(self, texts: Sequence[str], instruction: str | None) -> np.ndarray:
        """Stored vectors where there are, else computed ones."""
        known = self._known.get(instruction)
        if not known or not texts:
            return super().embed(texts, instruction)
        keys = [bytes(digest) for digest in text_digests(texts)]
        missing = [position for position, key in enumerate(keys) if key not in known]
        vectors = np.empty((len(texts), self.engine.dimensions), dtype=np.float32)
        if missing:
            vectors[missing] = super().embed([texts[position] for position in missing], instruction)
        for position, key in enumerate(keys):
            if key in known:
                vectors[position] = known[key]
        return vectors

    def found(self, task: mteb.AbsTask, shards: Sequence[Shard]) -> "StoredSearch":
        """A search model that answers from what the document `shards` found."""
        by_place: dict[tuple[str, str], list[Path]] = {}
        for shard in shards:
            by_place.setdefault((shard.subset, shard.split), []).append(
                self._found_path(task.metadata, shard)
            )
        return StoredSearch(self.mteb_model_meta, by_place)

    def _search_shard(self, task: mteb.AbsTask, shard: Shard, split: Any) -> None:
        path = self._found_path(task.metadata, shard)
        if read_arrays(path) is not None:
            return
        documents_ND = self._shard_vectors(task, shard)
        queries_QD = self._query_vectors(task, shard, split)
        first = _bounds(len(split["corpus"]), shard)[0]
        wanted = min(max(task.k_values), len(documents_ND))  # type: ignore[attr-defined]
        device = resolve_device("auto")
        scores, positions = exact_top_k(queries_QD, [documents_ND], wanted, device=device)
        queries = text_digests(split["queries"]["id"])
        write_arrays(path, {"scores": scores, "positions": positions + first, "queries": queries})

    def _query_vectors(self, task: mteb.AbsTask, shard: Shard, split: Any) -> np.ndarray:
        dataset = split["queries"]
        return self.encode(
            _batches(dataset, task.metadata, PromptType.query),
            task_metadata=task.metadata,
            hf_split=shard.split,
            hf_subset=shard.subset,
            prompt_type=PromptType.query,
        )

    def _shard_vectors(self, task: mteb.AbsTask, shard: Shard) -> np.ndarray:
        path = self._path(task.metadata, shard)
        stored = read_arrays(path)
        if stored is not None:
            return stored["vectors"]
        texts, instruction = shard_texts(task, shard), self._instruction(task.metadata, shard)
        for near in self.store.near(task.metadata, shard, instruction):
            self._take(near, instruction)
        vectors = self.embed(texts, instruction)
        write_arrays(path, {"vectors": vectors, "digests": text_digests(texts)})
        return vectors

    def _instruction(self, task: TaskMetadata, shard: Shard) -> str | None:
        return self.instruction(task, PromptType.document if shard.side == "document" else PromptType.query)

    def _path(self, task: TaskMetadata, shard: Shard) -> Path:
        return self.store.path(task, shard, self._instruction(task, shard))

    def _found_path(self, task: TaskMetadata, shard: Shard) -> Path:
        # The queries' instruction decides what is found as much as the documents' does.
        both = f"{self._instruction(task, shard)}\n{self.instruction(task, PromptType.query)}"
        return self.store.path(task, shard, both, "found")


class StoredSearch:
    """mteb's `SearchProtocol` over the best documents of every shard.

    Args:
        meta: of the model that made the vectors.
        found: (subset, split) -> the files of its shards.
    """

    def __init__(self, meta: Any, found: dict[tuple[str, str], list[Path]]):
        self.mteb_model_meta = meta
        self._found = found
        self._identifiers: list[str] = []

    def index(self, corpus: Any, **_: Any) -> None:
        """Keep the ids of the corpus; its vectors have been searched."""
        self._identifiers = list(corpus["id"])

    def search(
        self, queries: Any, *, hf_split: str, hf_subset: str, top_k: int, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Query id -> document id -> score of the `top_k` best documents of all shards."""
        best: tuple[np.ndarray, np.ndarray] | None = None
        for path in self._found[hf_subset, hf_split]:
            part = read_arrays(path)
            if part is None:
                raise RuntimeError(f"{path} is gone; run the evaluation again, it continues")
            # mteb drops queries that nothing answers, so a query is found by its id and not by its place.
            row_of = {bytes(digest): row for row, digest in enumerate(part["queries"])}
            rows = [row_of[bytes(digest)] for digest in text_digests(queries["id"])]
            found = part["scores"][rows], part["positions"][rows]
            best = found if best is None else merged(best, found, top_k)
        assert best is not None
        return {
            query: {
                self._identifiers[position]: score for position, score in zip(ranked, values, strict=True)
            }
            for query, values, ranked in zip(queries["id"], best[0].tolist(), best[1].tolist(), strict=True)
        }


def shard_texts(task: mteb.AbsTask, shard: Shard) -> list[str]:
    """Texts of a shard as the model reads them, in order."""
    rows = _rows(task, shard)
    if isinstance(task, AbsTaskRetrieval):
        side = PromptType.query if shard.side == "query" else PromptType.document
        dataset = rows["queries" if shard.side == "query" else "corpus"]
        part = dataset.select(range(*_bounds(len(dataset), shard)))
        return [text for batch in _batches(part, task.metadata, side) for text in batch["text"]]
    column = rows[task.input_column_name]  # type: ignore[attr-defined]
    texts = [text for value in column for text in ([value] if isinstance(value, str) else value)]
    return texts[slice(*_bounds(len(texts), shard))]


def is_searched(task: mteb.AbsTask, shard: Shard) -> bool:
    """Whether the shard is of a corpus that all queries search; reranking has lists of its own instead."""
    return shard.side == "document" and _rows(task, shard)["top_ranked"] is None


def _rows(task: mteb.AbsTask, shard: Shard) -> Any:
    dataset: Any = task.dataset
    return dataset[shard.subset][shard.split] if shard.subset in dataset else dataset[shard.split]


def _bounds(length: int, shard: Shard) -> tuple[int, int]:
    return length * shard.index // shard.of, length * (shard.index + 1) // shard.of


def _batches(dataset: Any, task: TaskMetadata, side: PromptType) -> Any:
    return task_texts(dataset, task, side, ENCODE_OPTIONS["batch_size"])
