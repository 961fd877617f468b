"""What the checks compute with: models of random weights, packed texts, time and memory."""

import contextlib
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, MistralConfig

from rayembed.config.blend import SourceConfig
from rayembed.config.stage import StageConfig
from rayembed.contract import TokenizedTexts
from rayembed.contract.packing import PackedBatch, pack
from rayembed.losses.infonce import infonce
from rayembed.model.backbone import prepare_backbone
from rayembed.model.configuration import LoraSettings, ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.lora import attach_lora
from rayembed.model.pooling import LatentPoolingConfig
from rayembed.training.step import StepOutput

GIBIBYTE = 2**30
ROUNDS = 3
Row = dict[str, Any]
STAGE = StageConfig(
    name="gpu",
    steps=10,
    batch_size=8,
    learning_rate=1e-4,
    blend=(SourceConfig(source="random", in_batch_negatives=True),),
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of models and texts.

    Attributes:
        backbone: settings of the Mistral configuration.
        pooling: of the latent head.
        widths: of an attention head, for the check of attention alone.
        longest: tokens of the longest text.
        row: tokens of the row in the checks of attention and head.
        chunks: tokens that are trained at a time.
        step: tokens of a step in chunks.
        budgets: tokens of a forward pass of the engine.
        small_layers: of the model in checks of values, where the whole one says nothing more.
    """

    backbone: dict[str, int]
    pooling: LatentPoolingConfig
    widths: tuple[int, ...]
    longest: int
    row: int
    chunks: tuple[int, ...]
    step: int
    budgets: tuple[int, ...]
    small_layers: int = 2


NV_EMBED = Sizes(
    backbone={
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    },
    pooling=LatentPoolingConfig(init="published"),
    widths=(64, 128, 256), longest=512, row=16_384, chunks=(8192, 16_384, 32_768), step=131_072,
    budgets=(4096, 16_384),
)  # fmt: skip
TINY = Sizes(
    backbone={
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    },
    pooling=LatentPoolingConfig(num_latents=8, num_heads=2, init="published"),
    widths=(8,), longest=40, row=200, chunks=(64, 128), step=256, budgets=(64, 128),
)  # fmt: skip


class Workload:
    """Models and texts of one size on one device."""

    def __init__(self, sizes: Sizes, device: torch.device):
        self.sizes, self.device = sizes, device
        self.on_gpu = device.type == "cuda"

    @property
    def config(self) -> MistralConfig:
        """Of the backbone."""
        return MistralConfig(**self.sizes.backbone, sliding_window=None, max_position_embeddings=32_768)

    def embedder(
        self,
        *,
        dtype: torch.dtype = torch.bfloat16,
        lora: LoraSettings | None = None,
        layers: int | None = None,
    ) -> EmbeddingModel:
        """Random weights, the same each time; the adapters already say something."""
        torch.manual_seed(0)
        config = self.config
        config.num_hidden_layers = layers or config.num_hidden_layers
        with self.device:
            backbone = prepare_backbone(AutoModel.from_config(config, dtype=dtype), "bidirectional")
            if lora:
                attach_lora(backbone, lora)
            embedder = EmbeddingModel(backbone, ModelConfig(pooling=self.sizes.pooling)).to(dtype)
            for name, parameter in embedder.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.02)
        return embedder

    def lengths(self, tokens: int, longest: int | None = None) -> list[int]:
        """Tokens of texts that are together so long, a sixteenth of the longest at least but for the last."""
        draw, most = random.Random(tokens), longest or self.sizes.longest
        found: list[int] = []
        while (left := tokens - sum(found)) > 0:
            found.append(min(left, draw.randint(most // 16 + 1, most)))
        return found

    def texts(self, lengths: list[int]) -> TokenizedTexts:
        """Texts of random tokens."""
        draw, vocabulary = random.Random(0), self.sizes.backbone["vocab_size"]
        ids = [[draw.randrange(vocabulary) for _ in range(length)] for length in lengths]
        return TokenizedTexts(ids, [0] * len(ids), [False] * len(ids))

    def batch(self, tokens: int) -> PackedBatch:
        """Texts of mixed lengths on the device."""
        return pack(self.texts(self.lengths(tokens))).to(self.device)

    def wait(self) -> None:
        """Until the device has done all that it was asked for."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def timed(self, work: Callable[[], Any], rounds: int = ROUNDS) -> Row:
        """Seconds of the rounds after a first one that is not counted, and the GPU's peak in them."""
        work()
        self.wait()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - started)
        return {"seconds": statistics.median(seconds), "all_seconds": seconds, "peak_gib": self.peak()}

    def peak(self) -> float | None:
        """Largest memory of the GPU since the last `timed` began; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / GIBIBYTE if self.on_gpu else None

    def held(self) -> float | None:
        """Memory of the GPU that is in use now; None on a CPU."""
        return torch.cuda.memory_allocated(self.device) / GIBIBYTE if self.on_gpu else None


def contrastive(vectors_ND: torch.Tensor) -> StepOutput:
    """InfoNCE of the first ninth of the texts as queries against all others."""
    queries = max(len(vectors_ND) // 9, 1)
    documents = len(vectors_ND) - queries
    target_Q = torch.arange(queries, device=vectors_ND.device) % documents
    allowed_QK = torch.ones(queries, documents, dtype=torch.bool, device=vectors_ND.device)
    losses_Q = infonce(vectors_ND[:queries], vectors_ND[queries:], target_Q, allowed_QK, 0.05)
    return StepOutput(losses_Q.mean(), {}, {})


def speed(tokens: int, measured: Row, bar: str | None = None) -> Row:
    """Tokens a second of what `timed` measured; `bar` names the figure that they count for."""
    rates = [tokens / seconds for seconds in measured["all_seconds"]]
    found = {"value": tokens / measured["seconds"], "spread": (min(rates), max(rates))}
    return measured | ({"bar": bar} if bar else {}) | {"tokens_per_second": found["value"]} | found


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over that of what is wanted."""
    wanted = wanted.float()
    return float((found.float() - wanted).norm() / wanted.norm().clamp(min=1e-20))


def row(name: str, measure: Callable[[], Row]) -> Row:
    """What was measured, or the error: what one setting cannot do says nothing of the next one."""
    try:
        return {"name": name} | measure()
    except torch.cuda.OutOfMemoryError:
        found = {"name": name, "error": "out of memory"}
    except Exception as error:  # noqa: BLE001 - a check on a machine that nobody knows tells all it can
        found = {"name": name, "error": f"{type(error).__name__}: {str(error)[:500]}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


@contextlib.contextmanager
def counted_waits(device: torch.device) -> Iterator[list[str]]:
    """Where the host waited for the GPU, as torch reports it."""
    waits: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            told = [each for each in caught if "synchroniz" in str(each.message)]
            waits += [f"{each.filename}:{each.lineno}" for each in told]
