"""`rayembed.Embedder`: load a checkpoint, turn texts into vectors.

Shapes: N texts, D width of the vectors.
"""

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rayembed.common.errors import RequestError
from rayembed.common.settings import Backend, Precision, Quantization
from rayembed.contract import Contract
from rayembed.contract.instructions import Side, chosen_instruction
from rayembed.engine.engine import Engine
from rayembed.engine.vector_formats import Quantisation, quantise

BLOCK_SIZE = 8192  # enough texts for passes of neighbours in length, few enough to hold in memory


class Embedder:
    """A loaded checkpoint.

    Vectors have length 1, so the dot product of two is their cosine. In fp32 a text gets the same vector
    alone, in any list and in any order; in bf16 it moves a little with the batch it is in.

    Attributes:
        engine: the engine underneath, which also reports tokens and truncations.
    """

    def __init__(self, engine: Engine):
        self.engine = engine

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        fp32_layers: int = 0,
        quantization: Quantization = "none",
        compiled: bool = False,
        token_budget: int | None = None,
        backend: Backend = "auto",
    ) -> "Embedder":
        """Load a checkpoint folder.

        Args:
            path: folder written by training, `rayembed import-checkpoint` or an export.
            device: auto, cpu, cuda or cuda:N.
            precision: auto takes bf16 where the processor has it.
            fp32_layers: in 16 bits, first layers that compute in fp32 altogether.
            quantization: hold the decoder's weights in 8 bits, as int8 or fp8; needs the package torchao.
            compiled: build kernels for norms and feed-forward networks with torch's compiler, which takes up
                to a minute in the first forward pass and needs a C++ compiler on a CPU.
            token_budget: most tokens in one forward pass; bounds memory. None takes what suits the device.
            backend: auto lets OpenVINO, where it is installed, compute short passes on a CPU.

        Raises:
            CheckpointError: the folder is incomplete, damaged or of another shape.
            ConfigError: the device is not there.
        """
        engine = Engine.load(
            path,
            device=device,
            precision=precision,
            fp32_layers=fp32_layers,
            quantization=quantization,
            compiled=compiled,
            token_budget=token_budget,
            backend=backend,
        )
        return cls(engine)

    @property
    def contract(self) -> Contract:
        """How texts become tokens, and the instructions that the model was trained with."""
        return self.engine.contract

    @property
    def dimensions(self) -> int:
        """Full width of the vectors."""
        return self.engine.dimensions

    def encode(
        self,
        texts: Iterable[str],
        *,
        instruction: str | None = None,
        task: str | None = None,
        side: Side = "query",
        dimensions: int | None = None,
        vectors: Quantisation = "float32",
        show_progress: bool = False,
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: N texts, a list or any other iterable; all are held in memory (see `encode_blocks`).
            instruction: what the texts are for, in words; None for documents.
            task: name of an instruction that the model was trained with, in place of words.
            side: of the task, whether the texts are its queries or its documents.
            dimensions: cut the vectors to this width and renormalise; None keeps the full width.
            vectors: number format of the vectors, see `quantise`.
            show_progress: draw a progress bar over tokens.

        Returns:
            Vectors (N, D) in the order of the texts, of length 1 as fp32; of bits (N, D / 8) bytes.

        Raises:
            RequestError: the texts are not texts, the instruction fills the whole length, the model was not
                trained for the task, or `dimensions` is out of range.
        """
        encoded = self.engine.encode(
            list(_checked(texts)),
            instruction=chosen_instruction(self.contract, instruction, task, side),
            dimensions=dimensions,
            show_progress=show_progress,
        )
        return quantise(encoded.vectors, vectors, self.contract.vector_ranges)

    def encode_blocks(
        self,
        texts: Iterable[str],
        *,
        instruction: str | None = None,
        task: str | None = None,
        side: Side = "query",
        dimensions: int | None = None,
        vectors: Quantisation = "float32",
        block_size: int = BLOCK_SIZE,
        total: int | None = None,
        show_progress: bool = True,
    ) -> Iterator[np.ndarray]:
        """Embed texts of any number: an iterator over vectors of consecutive blocks of texts.

        One block of texts is read and one block of vectors is held at a time.

        Args:
            texts: the texts, a generator for example.
            instruction: as in `encode`.
            task: as in `encode`.
            side: as in `encode`.
            dimensions: as in `encode`.
            vectors: as in `encode`.
            block_size: texts of a block; larger blocks sort better by length and need more memory.
            total: number of texts for the progress bar, where `texts` does not know it.
            show_progress: draw a progress bar over texts.

        Returns:
            Iterator over vectors (block_size, D), as `encode` gives them; the last block may have fewer rows.

        Raises:
            RequestError: as `encode`; texts are checked as they are read.
        """
        checked = _checked(texts)
        if block_size < 1:
            raise RequestError(f"block_size must be at least 1, not {block_size}")
        if total is None and isinstance(texts, Sized):
            total = len(texts)
        words = chosen_instruction(self.contract, instruction, task, side)
        return self._blocks(checked, words, dimensions, vectors, block_size, total, show_progress)

    def _blocks(
        self,
        texts: Iterator[str],
        instruction: str | None,
        dimensions: int | None,
        vectors: Quantisation,
        block_size: int,
        total: int | None,
        show_progress: bool,
    ) -> Iterator[np.ndarray]:
        with tqdm(total=total, unit=" texts", desc="embedding", disable=not show_progress) as progress:
            while block := list(islice(texts, block_size)):
                encoded = self.engine.encode(block, instruction=instruction, dimensions=dimensions)
                yield quantise(encoded.vectors, vectors, self.contract.vector_ranges)
                progress.update(len(block))

    @staticmethod
    def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Cosine of every vector of `first` (N, D) with every one of `second` (M, D), shape (N, M).

        Raises:
            RequestError: the vectors differ in width.
        """
        first, second = np.atleast_2d(first), np.atleast_2d(second)
        if first.shape[1] != second.shape[1]:
            raise RequestError(
                f"vectors of {first.shape[1]} and {second.shape[1]} dimensions cannot be compared; "
                "make both with the same `dimensions`"
            )
        return first @ second.T


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """Iterator over `texts` that stops at the first item that is not a text."""
    if isinstance(texts, str | bytes):
        raise RequestError(
            f"texts must be a list or another iterable of str, not one {type(texts).__name__}; "
            "put a single text into a list: [text]"
        )
    if not isinstance(texts, Iterable):
        raise RequestError(f"texts must be a list or another iterable of str, not {type(texts).__name__}")
    return (_checked_item(text, position) for position, text in enumerate(texts))


def _checked_item(text: object, position: int) -> str:
    if not isinstance(text, str):
        raise RequestError(
            f"text {position} is of type {type(text).__name__}, not str; convert it or leave it out"
        )
    return text
