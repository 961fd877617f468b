"""Texts -> unit vectors, packed and never padded.

Shapes: N texts, D width of the vectors.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rayembed.common.device import resolve_device
from rayembed.common.errors import ConfigError, RequestError
from rayembed.common.paths import resolve
from rayembed.common.settings import DEFAULT_TOKEN_BUDGETS, Backend, Precision, Quantization
from rayembed.contract import Contract, TokenizedTexts
from rayembed.contract.packing import PackedBatch, pack_ids
from rayembed.contract.vectors import cut
from rayembed.engine.memory import keep_freed_memory
from rayembed.engine.openvino import OpenVinoDecoder, openvino_decoder
from rayembed.engine.quantization import check_torchao, quantize_weights
from rayembed.model.checkpoint import LoadedModel, load_model
from rayembed.model.compilation import check_compiler, compile_token_wise_parts
from rayembed.model.mixed_precision import use_mixed_precision
from rayembed.model.precision import chosen_precision, resolve_precision

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
    """A loaded model and the batching around it; threads take turns in it."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        name: str,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        token_budget: int | None = None,
        openvino: OpenVinoDecoder | None = None,
    ):
        self.contract: Contract = model.contract
        self.tokenizer: PreTrainedTokenizerBase = model.tokenizer
        self.digest: str = model.digest
        self.name = name
        self.precision = precision
        keep_freed_memory()
        self.device = device or torch.device("cpu")
        self.token_budget = token_budget or DEFAULT_TOKEN_BUDGETS[self.device.type]
        self._embedder = model.embedder.to(self.device).eval()
        from rayembed.model.adapters import Adapters  # peft takes seconds to import

        self._adapters = Adapters(self._embedder.backbone)
        self._openvino = openvino
        self._tokenising, self._computing = threading.Lock(), threading.Lock()

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        fp32_layers: int = 0,
        quantization: Quantization = "none",
        compiled: bool = False,
        token_budget: int | None = None,
        backend: Backend = "auto",
    ) -> "Engine":
        """Load a checkpoint folder.

        Args:
            checkpoint: folder written by training, `rayembed import-checkpoint` or an export.
            device: auto, cpu, cuda or cuda:N.
            precision: auto takes bf16 where the processor has it. In 16 bits the residual stream, the norms
                and the pooled states are fp32.
            fp32_layers: in 16 bits, first layers that compute in fp32 altogether.
            quantization: hold the decoder's weights in 8 bits, as int8 or fp8; needs the package torchao.
            compiled: build kernels for norms and feed-forward networks with torch's compiler, which takes up
                to a minute in the first forward pass and needs a C++ compiler on a CPU.
            token_budget: most tokens in one forward pass; bounds memory. None: 4096 on a CPU, whose caches
                hold no more, 16384 on a GPU.
            backend: auto lets OpenVINO, where it is installed, compute short passes on a CPU.

        Raises:
            CheckpointError: the folder is incomplete, damaged or of another shape.
            ConfigError: there is no such device, `fp32_layers` is set in fp32, or the model has fewer layers.
            ResourceError: 8 bits without torchao, or `compiled` on a CPU without a C++ compiler.
        """
        folder = resolve(checkpoint)
        target = resolve_device(device)
        precision = chosen_precision(precision, target)
        dtype = resolve_precision(precision, target)
        if fp32_layers and dtype is torch.float32:
            raise ConfigError(
                "fp32_layers belongs to precision bf16 and fp16; in fp32 all layers compute in fp32"
            )
        check_torchao(quantization)
        if compiled:
            check_compiler(target.type)
        model = load_model(folder, dtype="auto" if fp32_layers else dtype, device=target)
        plain = backend == "auto" and quantization == "none" and not (fp32_layers or compiled)
        decoder = openvino_decoder(model.embedder, dtype, target) if plain else None
        engine = cls(
            model,
            name=folder.name,
            device=target,
            precision=precision,
            token_budget=token_budget,
            openvino=decoder,
        )
        if dtype is not torch.float32:
            use_mixed_precision(engine._embedder, dtype=dtype, fp32_layers=fp32_layers)
        quantize_weights(engine._embedder.backbone, quantization)
        if compiled:
            compile_token_wise_parts(engine._embedder.backbone)
        return engine

    def add_adapter(self, name: str, folder: Path) -> str:
        """Load a LoRA adapter beside the model's weights, for `encode_tokens`; returns its files' digest.

        Raises:
            CheckpointError: the folder has no LoRA adapter, or one of another model.
        """
        return self._adapters.add(name, folder)

    @property
    def dimensions(self) -> int:
        """Full width of the vectors."""
        return self._embedder.dimensions

    @property
    def pooling(self) -> str:
        """Type of the pooling head."""
        return self._embedder.config.pooling.type

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        return sum(weight.numel() * weight.element_size() for weight in self._embedder.parameters())

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenizedTexts:
        """Tokenise under the checkpoint's contract."""
        with self._tokenising:
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
        self,
        tokenized: TokenizedTexts,
        *,
        dimensions: int | None = None,
        show_progress: bool = False,
        adapter: str = "",
    ) -> np.ndarray:
        """Embed tokenised texts; returns fp32 unit vectors (N, D) in the order given.

        `adapter` names one that was added; the empty name is the model without any.

        Raises:
            RequestError: `dimensions` is out of range.
        """
        width = self._checked_width(dimensions)
        vectors = np.empty((len(tokenized), width), dtype=np.float32)
        progress = tqdm(total=sum(tokenized.lengths), unit="tok", disable=not show_progress, desc="embedding")
        passes = (
            (members, batch.num_tokens, cut(self.forward(batch), width))
            for members, batch in self.packed_batches(tokenized)
        )
        with progress, self._computing:
            self._adapters.choose(adapter)
            # A GPU has the next pass to compute while the vectors of the one before are waited for.
            for (members, tokens, found), _ in pairwise(chain(passes, [([], 0, torch.empty(0))])):
                vectors[members] = found.cpu().numpy()
                progress.update(tokens)
        return vectors

    def packed_batches(self, tokenized: TokenizedTexts) -> Iterator[tuple[list[int], PackedBatch]]:
        """Positions and packed tokens of the texts of each forward pass."""
        lengths = tokenized.lengths
        for members in self._batches(lengths):
            yield (
                members,
                pack_ids(
                    [tokenized.input_ids[member] for member in members],
                    [tokenized.pool_starts[member] for member in members],
                    multiple=row_multiple(sum(lengths[member] for member in members)),
                ),
            )

    @torch.inference_mode()
    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Vectors of one packed batch on the engine's device, fp32 of unit length (N, D)."""
        if self._openvino and self._openvino.takes(batch) and not self._adapters.chosen:
            return self._embedder.pool(self._openvino(batch), batch)
        return self._embedder(batch.to(self.device))

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


def row_multiple(tokens: int) -> int:
    """What the length of a packed row is rounded up to, so that kernels are built for few lengths.

    A sixteenth to an eighth of the row, as a power of two between 16 and 256 tokens.
    """
    part = 1 << max(tokens.bit_length() - 4, 0)
    return min(max(part, 16), 256)
