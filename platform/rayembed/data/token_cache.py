"""Texts of a prepared source as token ids on disk, so that no step tokenises again.

A cache is a folder next to the source's rows, named by a digest of tokenizer, contract and instructions: what
was made under another one is never read. It is mapped into memory, like the rows.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayembed.common.paths import atomic_directory
from rayembed.common.progress import Progress
from rayembed.config.blend import SourceConfig
from rayembed.contract import Contract
from rayembed.data.plan import fingerprint
from rayembed.data.prepared import PreparedRows
from rayembed.records.schema import document_id

logger = logging.getLogger(__name__)

_SCHEMA = pa.schema({"ids": pa.list_(pa.int32()), "pool_start": pa.int32()})
_USED_OF_THE_CONTRACT = {"instruction_template", "append_eos", "max_length", "truncation"}


class TokenCache:
    """Finds the tokens of texts of one source."""

    def __init__(self, folder: Path):
        self._keys = np.load(folder / "keys.npy", mmap_mode="r")
        self._positions = np.load(folder / "positions.npy", mmap_mode="r")
        file = pa.ipc.open_file(pa.memory_map(str(folder / "tokens.arrow")))
        self._batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def find(self, keys: np.ndarray) -> dict[int, tuple[list[int], int]]:
        """Token ids and pool start of the keys that are here, by their place in `keys`."""
        if not len(self._keys):
            return {}
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        present = np.flatnonzero(self._keys[places] == keys).tolist()
        return {index: self._read(int(self._positions[places[index]])) for index in present}

    def _read(self, position: int) -> tuple[list[int], int]:
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        row = self._batches[number].slice(position - int(self._starts[number]), 1).to_pylist()[0]
        return row["ids"], row["pool_start"]


def token_keys(texts_and_instructions: Sequence[tuple[str, str]]) -> np.ndarray:
    """What texts are found by: uint64, of the text and the instruction in front of it."""
    return np.array(
        [int(document_id(f"{instruction}\0{text}"), 16) for text, instruction in texts_and_instructions],
        dtype=np.uint64,
    )


def cache_tokens(rows: Path, entry: SourceConfig, contract: Contract, tokenizer: Any) -> Path:
    """Folder with the tokens of a prepared source; makes it where it is missing.

    Args:
        rows: file of the prepared rows.
        entry: the source's entry in the blend.
        contract: how a text becomes tokens.
        tokenizer: a fast tokenizer of transformers.
    """
    description = {
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id],
        "contract": contract.model_dump(include=_USED_OF_THE_CONTRACT),
        "instructions": list(entry.wordings),
        "symmetric": entry.symmetric,
    }
    folder = rows.parent / f"tokens-{fingerprint(description)[:16]}"
    if not folder.is_dir():
        with atomic_directory(folder) as temporary:
            _write(temporary, PreparedRows.open(rows), entry, contract, tokenizer)
        logger.info("source %s: tokens are in %s", entry.source, folder)
    return folder


def _write(folder: Path, rows: PreparedRows, entry: SourceConfig, contract: Contract, tokenizer: Any) -> None:
    keys: list[np.ndarray] = []
    progress = Progress(logger, f"source {entry.source}, tokenising", unit="texts")
    path = folder / "tokens.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        for batch in rows.batches():
            for instruction, texts in _texts(batch, entry):
                tokenized = contract.tokenize(tokenizer, texts, instruction or None)
                writer.write_batch(
                    pa.record_batch([tokenized.input_ids, tokenized.pool_starts], schema=_SCHEMA)
                )
                keys.append(token_keys([(text, instruction) for text in texts]))
                progress.add(len(texts))
    all_keys = np.concatenate(keys) if keys else np.empty(0, np.uint64)
    order = np.argsort(all_keys, kind="stable")
    np.save(folder / "keys.npy", all_keys[order])
    np.save(folder / "positions.npy", order)


def _texts(batch: pa.RecordBatch, entry: SourceConfig) -> Iterator[tuple[str, list[str]]]:
    """Every instruction with the distinct texts that may carry it; an empty one for bare texts."""
    carrying: dict[str, dict[str, None]] = {}
    for row in batch.select(["query", "positives", "negatives", "instruction"]).to_pylist():
        for instruction in (row["instruction"],) if row["instruction"] else entry.wordings or ("",):
            carrying.setdefault(instruction, {})[row["query"]] = None
            documents = carrying.setdefault(instruction if entry.symmetric else "", {})
            documents.update(dict.fromkeys(row["positives"] + row["negatives"]))
    for instruction, texts in carrying.items():
        yield instruction, list(texts)
