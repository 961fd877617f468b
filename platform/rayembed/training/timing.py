"""Where the time of a step goes."""

import contextlib
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

Mark = float | torch.cuda.Event


class StepTimer:
    """Adds up the seconds of named phases.

    On a GPU the phases are measured by events on the stream, so that marking them waits for nothing.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self._on_gpu = torch.device(device).type == "cuda"
        self._spans: list[tuple[str, Mark, Mark]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is done inside to a phase; a phase may come several times in a step."""
        start = self._mark()
        yield
        self._spans.append((name, start, self._mark()))

    def add(self, name: str, seconds: float) -> None:
        """Count a duration that was measured elsewhere."""
        self._spans.append((name, 0.0, seconds))

    def restart(self) -> None:
        """Forget what was counted."""
        self._spans.clear()

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
