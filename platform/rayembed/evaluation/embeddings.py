"""Vectors of large text sets on disk, in shards that survive whoever computed them.

    <output>/embeddings/<digest>/<task>-<revision>/<subset>-<split>-<side>-<key>-00002-of-00010...

`key` is a digest of the contract, the precision and the instruction. A shard is written by one actor under a
temporary name and renamed; one that is torn all the same is computed again.
"""

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rayembed.common.paths import atomic_file
from rayembed.contract import Contract
from rayembed.evaluation.units import Shard

logger = logging.getLogger(__name__)

FOLDER = "embeddings"
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
    precision: str = "auto"

    def task_folder(self, task: TaskMetadata) -> Path:
        """Folder of all shards of one revision of a task."""
        revision = str(task.dataset["revision"])[:_DIGEST_CHARACTERS]
        return self.output / FOLDER / self.digest[:_DIGEST_CHARACTERS] / f"{task.name}-{revision}"

    def path(self, task: TaskMetadata, shard: Shard, instruction: str | None, what: str = "vectors") -> Path:
        """File of one shard; `what` is vectors, or names what was derived from them."""
        made_under = f"{self.contract.model_dump_json()}\n{self.precision}\n{instruction or ''}"
        key = hashlib.sha256(made_under.encode()).hexdigest()[:8]
        place = _UNSAFE.sub("_", f"{shard.subset}-{shard.split}")
        name = f"{place}-{shard.side}-{key}-{shard.index:05d}-of-{shard.of:05d}.{what}.safetensors"
        return self.task_folder(task) / name

    def remove(self, task: TaskMetadata) -> None:
        """Delete the shards of a task that has been scored."""
        shutil.rmtree(self.task_folder(task), ignore_errors=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays so that a reader sees all or none of them."""
    with atomic_file(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays that `write_arrays` wrote; None where there are none or the file is torn."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning("%s is torn (%s) and is computed again", path, error)
        return None
