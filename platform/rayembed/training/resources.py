"""Time, memory and arithmetic of a step."""

import contextlib
import resource
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
import transformers
from torch import nn

from rayembed.common.errors import ResourceError
from rayembed.config.training import TrainingConfig
from rayembed.contract.packing import PackedBatch
from rayembed.data.collate import TrainingBatch

_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed
_PRODUCTS = 5
# Part of a GPU's name -> dense bf16, from NVIDIA's data sheets, which state twice as much "with sparsity".
# The first that fits counts.
_NOMINAL_PEAKS = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}

Item = TypeVar("Item")
Mark = float | torch.cuda.Event


class StepTimer:
    """Adds up the seconds of named phases.

    On a GPU the phases are measured by events on the stream, so that marking them waits for nothing.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self._on_gpu = torch.device(device).type == "cuda"
        self._spans: list[tuple[str, Mark, Mark]] = []
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is done inside to a phase; a phase may come several times in a step."""
        start = self._mark()
        yield
        self._spans.append((name, start, self._mark()))

    def add(self, name: str, seconds: float) -> None:
        """Count a duration that was measured elsewhere."""
        self._spans.append((name, 0.0, seconds))

    def waiting(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; count the wait for each of them to a phase."""
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.add(name, time.perf_counter() - started)
            yield item

    def restart(self) -> None:
        """Forget what was counted; a new step begins."""
        self._spans.clear()
        self._started = time.perf_counter()

    def total(self) -> float:
        """Seconds since the last `restart`."""
        return time.perf_counter() - self._started

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase since the last `restart`; on a GPU this waits for the last one to end."""
        if self._on_gpu:
            torch.cuda.synchronize()
        totals: dict[str, float] = defaultdict(float)
        for name, start, end in self._spans:
            totals[name] += _between(start, end)
        return dict(totals)

    def _mark(self) -> Mark:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(start: Mark, end: Mark) -> float:
    if isinstance(start, float):
        assert isinstance(end, float)
        return end - start
    assert isinstance(end, torch.cuda.Event)
    return start.elapsed_time(end) / 1000


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: allocated on the GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike that of getrusage, this peak does not begin with the size of the parent process.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_advice(training: TrainingConfig, batch: TrainingBatch) -> str:
    """The settings to try, with half of the tokens that were encoded at a time."""
    tokens = min(training.chunk_tokens or batch.packed.num_tokens, batch.packed.num_tokens)
    return f"set training.tokens_per_chunk to {tokens // 2} or less, or activation_checkpointing: true"


@contextlib.contextmanager
def advising_on_memory(what: str, training: TrainingConfig, batch: TrainingBatch) -> Iterator[None]:
    """Run a step of one worker.

    Args:
        what: subject of the sentence, such as "step 7 of stage retrieval".
        training: settings of the step.
        batch: of this worker.

    Raises:
        ResourceError: the GPU's memory was not enough.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceError(
            f"{what} with {batch.packed.num_tokens:,} tokens ran out of GPU memory; "
            f"{memory_advice(training, batch)}"
        ) from error


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of the fastest of some large matrix products, after a first one.

    The numbers are random: a GPU multiplies equal ones faster, because their bits switch fewer transistors.
    """
    side = _SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(side, side, device=device, dtype=dtype, generator=generator)
    seconds = []
    for _ in range(_PRODUCTS + 1):
        _wait(device)
        started = time.perf_counter()
        matrix @ matrix
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds[1:])


def nominal_peak(gpu: str) -> float | None:
    """Floating point operations a second in dense bf16 that the maker states; None for other processors.

    Args:
        gpu: name as torch tells it, such as "NVIDIA H100 80GB HBM3".
    """
    return next((peak for name, peak in _NOMINAL_PEAKS.items() if name in gpu), None)


class Utilization:
    """Model FLOPs utilization as the PaLM paper defines it (appendix B): recomputation does not count.

    Counted are the products of the backbone's linear layers and of its attention, forward and backward, and
    gradients of weights where they are trained; pooling and losses are left out. Made and used on rank 0, of
    whose own batch and device it tells.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        """Args:
        model: with its trainable parameters marked, inside DeepSpeed or not.
        device: that computes; its peak is measured here.
        """
        on_gpu = device.type == "cuda"
        self.nominal_peak = nominal_peak(torch.cuda.get_device_name(device)) if on_gpu else None
        backbone = model.get_submodule("backbone")
        assert isinstance(backbone, transformers.PreTrainedModel)
        self.peak = measured_peak(device, backbone.dtype)
        layers = [module for module in backbone.modules() if isinstance(module, nn.Linear)]
        self._per_token = sum(2 * _size(layer) * (2 + layer.weight.requires_grad) for layer in layers)
        config = backbone.config
        width = config.num_attention_heads * (getattr(config, "head_dim", None) or 0) or config.hidden_size
        # Two products of a text's tokens with one another forward, four backward.
        self._per_pair = 6 * 2 * width * config.num_hidden_layers

    def of(self, batch: PackedBatch, seconds: float) -> tuple[float, float | None]:
        """Shares of the measured and of the nominal peak in a step that took so long, from 0 to 1."""
        pairs = sum(length**2 for length in batch.lengths.texts)
        operations = self._per_token * batch.num_tokens + self._per_pair * pairs
        speed = operations / seconds
        return speed / self.peak, self.nominal_peak and speed / self.nominal_peak


def _size(layer: nn.Linear) -> int:
    return layer.in_features * layer.out_features  # ZeRO 3 leaves the weight itself empty


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
