"""One real step at the longest batch of a stage, to meet a lack of memory before training does.

It runs in a process of its own, so that its peak of memory is that of a worker, and a process that the system
kills does not take the caller with it. The optimizer's state is not shared with other workers.
"""

import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist

from rayembed.common.errors import ResourceError, TrainingError
from rayembed.data.collate import TrainingBatch
from rayembed.model.precision import resolve_device, resolve_precision
from rayembed.training.bad_batch import BadBatch
from rayembed.training.build import build_engine
from rayembed.training.engine import take_step
from rayembed.training.memory import advising_on_memory, memory_advice
from rayembed.training.stage_run import StageRun
from rayembed.training.steps import step_of
from rayembed.training.timing import StepTimer, peak_memory


@dataclass(frozen=True)
class Trial:
    """A step that was tried.

    Attributes:
        step: its number in the stage.
        tokens: of one worker.
        seconds: duration.
        memory: largest memory of the process, in bytes: of the GPU, else resident.
    """

    step: int
    tokens: int
    seconds: float
    memory: int


def try_step(run: StageRun, batch: TrainingBatch) -> Trial:
    """Take one step with a batch in a process of its own and throw the weights away.

    Args:
        run: the stage; stages before it need not be trained, it starts from fresh weights.
        batch: of one worker, as `longest_batch` gives it.

    Raises:
        ResourceError: memory was not enough.
        TrainingError: the loss or the gradient is not finite.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_step, run, batch).result()
        except BrokenProcessPool as error:
            raise ResourceError(
                f"{_tried(batch)} with {batch.packed.num_tokens:,} tokens was killed, most likely for its "
                f"memory; {memory_advice(run.config.training, batch)}"
            ) from error


def _step(run: StageRun, batch: TrainingBatch) -> Trial:
    training = run.config.training
    device = resolve_device()
    dtype = resolve_precision(training.precision, device)
    torch.set_num_threads(training.threads_per_worker or max((os.cpu_count() or 1) // training.workers, 1))
    with tempfile.TemporaryDirectory() as folder:
        _join_alone(Path(folder) / "store", device)
        try:
            with advising_on_memory(_tried(batch), training, batch):
                step = step_of(run, device, dtype)
                engine = build_engine(run, None, dtype, batch.num_queries)
                started = time.perf_counter()
                step.backward(engine, batch, StepTimer(device))
                take_step(engine)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - started
        except BadBatch as error:
            raise TrainingError(f"{_tried(batch)}: {error}; remove its rows") from error
        finally:
            dist.destroy_process_group()
    return Trial(batch.step, batch.packed.num_tokens, seconds, peak_memory(device))


def _join_alone(store: Path, device: torch.device) -> None:
    """A process group of this process alone, which DeepSpeed asks for."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)


def _tried(batch: TrainingBatch) -> str:
    return f"a step at the longest batch (step {batch.step})"
