"""Texts -> unit vectors, packed and never padded.

Shapes: N texts, D width of the vectors.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rayembed.contract import Contract, TokenizedTexts
from rayembed.errors import RequestError
from rayembed.model.checkpoint import LoadedModel, load_model
from rayembed.model.configuration import Precision
from rayembed.model.packing import pack_ids
from rayembed.model.precision import resolve_device, resolve_precision
from rayembed.paths import resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """Vectors of N texts and what it took to make them.

    Attributes:
        vectors: fp32 unit vectors, shape (N, D).
        token_counts: tokens of each text, instruction and end token included.
        truncated: for each text whether it was cut to the maximum length.
    """

    vectors: np.ndarray
    token_counts: list[int]
    truncated: list[bool]


class Engine:
    """A loaded model and the batching around it."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        name: str,
        device: torch.device | None = None,
        token_budget: int = 8192,
    ):
        self.contract: Contract = model.contract
        self.tokenizer: PreTrainedTokenizerBase = model.tokenizer
        self.digest: str = model.digest
        self.name = name
        self.token_budget = token_budget
        self.device = device or torch.device("cpu")
        self._embedder = model.embedder.to(self.device).eval()

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        token_budget: int = 8192,
    ) -> "Engine":
        """Load a checkpoint folder.

        Args:
            checkpoint: folder written by training or `rayembed base-model --checkpoint`.
            device: auto, cpu, cuda or cuda:N.
            precision: auto takes bf16 where the processor has it.
            token_budget: most tokens in one forward pass; bounds memory.

        Raises:
            CheckpointError: the folder is incomplete, damaged or of another shape.
        """
        folder = resolve(checkpoint)
        target = resolve_device(device)
        model = load_model(folder, dtype=resolve_precision(precision, target))
        return cls(model, name=folder.name, device=target, token_budget=token_budget)

    @property
    def dimensions(self) -> int:
        """Full width of the vectors."""
        return self._embedder.dimensions

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenizedTexts:
        """Tokenise under the checkpoint's contract."""
        return self.contract.tokenize(self.tokenizer, texts, instruction)

    def encode(
        self,
        texts: Sequence[str],
        *,
        instruction: str | None = None,
        dimensions: int | None = None,
        show_progress: bool = False,
    ) -> Encoded:
        """Embed texts; each distinct text is computed once.

        Args:
            texts: N texts.
            instruction: what the texts are for; None for documents.
            dimensions: cut the vectors to this width and renormalise; None keeps the full width.
            show_progress: draw a progress bar over tokens.

        Raises:
            RequestError: `dimensions` is out of range or the instruction fills the whole length.
        """
        position_of: dict[str, int] = {}
        restore = [position_of.setdefault(text, len(position_of)) for text in texts]
        tokenized = self.tokenize(list(position_of), instruction)
        vectors = self.encode_tokens(tokenized, dimensions=dimensions, show_progress=show_progress)
        lengths = tokenized.lengths
        return Encoded(
            vectors[restore],
            [lengths[position] for position in restore],
            [tokenized.truncated[position] for position in restore],
        )

    @torch.inference_mode()
    def encode_tokens(
        self, tokenized: TokenizedTexts, *, dimensions: int | None = None, show_progress: bool = False
    ) -> np.ndarray:
        """Embed tokenised texts; returns fp32 unit vectors (N, D) in the order given.

        Raises:
            RequestError: `dimensions` is out of range.
        """
        width = self._checked_width(dimensions)
        vectors = np.empty((len(tokenized), width), dtype=np.float32)
        progress = tqdm(total=sum(tokenized.lengths), unit="tok", disable=not show_progress, desc="embedding")
        with progress:
            for members in self._batches(tokenized.lengths):
                batch = pack_ids(
                    [tokenized.input_ids[member] for member in members],
                    [tokenized.pool_starts[member] for member in members],
                )
                vectors_ND = self._embedder(batch.to(self.device))
                if width < self.dimensions:
                    vectors_ND = F.normalize(vectors_ND[:, :width], dim=-1)
                vectors[members] = vectors_ND.cpu().numpy()
                progress.update(batch.num_tokens)
        return vectors

    def _checked_width(self, dimensions: int | None) -> int:
        if dimensions is None:
            return self.dimensions
        if not 1 <= dimensions <= self.dimensions:
            raise RequestError(f"dimensions must be between 1 and {self.dimensions}, not {dimensions}")
        return dimensions

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Positions of the texts of each forward pass: longest first, as many as the token budget holds.

        Neighbours in length share a pass because attention handles equal lengths together.
        """
        members: list[int] = []
        tokens = 0
        for position in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            if members and tokens + lengths[position] > self.token_budget:
                yield members
                members, tokens = [], 0
            members.append(position)
            tokens += lengths[position]
        if members:
            yield members
