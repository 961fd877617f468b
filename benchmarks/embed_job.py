"""Bulk embedding over Ray Data against bare engines: what reading, scheduling and writing cost.

python benchmarks/embed_job.py [--quick] [--layers N] --json OUT

embed_job         texts/s of the job with two actors of one thread, in steady state, as a share of two engines
                  in processes of one thread that run at the same time on the same texts
embed_job_remote  the same with input and output on an S3 server (moto) on this machine, whose processor time
                  the job pays for

The model is SmolLM2-135M, cut to its first layers, mean-pooled and untrained. The job has the texts in a
Parquet file and writes vectors; the engines get the same lists of texts as the actors, every second
one each. Steady state is the time in which every actor works: from the first shard of the last actor to have
one, to the last of the first to end. The detail also has the rate of engines that get one long list.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Bar, arguments, write_report
from inputs import natural_texts

from rayembed.common import logs
from rayembed.common.paths import workspace
from rayembed.common.ray_cluster import connect
from rayembed.common.stores import open_location
from rayembed.contract import Contract
from rayembed.engine.bulk.job import embed_files
from rayembed.engine.bulk.request import EmbeddingWork, EmbedRequest, ShardWorker
from rayembed.model.base_model import prepare_base_model, save_untrained
from tests.stores import s3_server

ACTORS = 2
SHARD_ROWS = 1024
GOALS = {"embed_job": 0.92, "embed_job_remote": 0.85}


class TimedWorker(ShardWorker):
    """Notes when each shard is done, in a folder with one file an actor."""

    def __init__(self, times: Path, work: EmbeddingWork):
        super().__init__(work)
        self._times = times

    def embed(self, shard: int):
        """Embed a shard, then write down the time."""
        made = super().embed(shard)
        with open(self._times / str(os.getpid()), "a") as stream:
            stream.write(f"{time.time()} {made.rows}\n")
        return made


def engine_process(checkpoint: Path, lists: list[list[str]], pipe: Connection) -> None:
    """Load an engine; embed the lists whenever the pipe says so and send back the seconds and the vectors."""
    import torch

    torch.set_num_threads(1)
    from rayembed.engine.engine import Engine

    engine = Engine.load(checkpoint)
    engine.encode(lists[0])
    pipe.send(None)
    while request := pipe.recv():
        calls = lists if request == "lists" else [[text for texts in lists for text in texts]]
        started = time.perf_counter()
        vectors = [engine.encode(texts).vectors for texts in calls]
        pipe.send((time.perf_counter() - started, np.concatenate(vectors)))


class Engines:
    """Engines in processes of their own, with shares of the texts."""

    def __init__(self, checkpoint: Path, texts: list[str]):
        context = multiprocessing.get_context("spawn")
        shards = np.arange(len(texts)).reshape(-1, SHARD_ROWS)
        self.shares = [np.concatenate(shards[first::ACTORS]) for first in range(ACTORS)]
        self._pipes: list[Connection] = []
        self._processes = []
        for first in range(ACTORS):
            ours, theirs = context.Pipe()
            lists = [[texts[position] for position in shard] for shard in shards[first::ACTORS]]
            process = context.Process(target=engine_process, args=(checkpoint, lists, theirs), daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)
        for pipe in self._pipes:
            pipe.recv()

    def run(self, calls: str = "lists") -> tuple[float, np.ndarray]:
        """Texts/s of all engines together, and the vectors in the order of the texts.

        Each engine gets its `lists` one after the other, or all of them as `one` list.
        """
        for pipe in self._pipes:
            pipe.send(calls)
        answers = [pipe.recv() for pipe in self._pipes]
        vectors = np.empty((sum(map(len, self.shares)), answers[0][1].shape[1]), dtype=np.float32)
        for share, (_, made) in zip(self.shares, answers, strict=True):
            vectors[share] = made
        return sum(len(share) / took for share, (took, _) in zip(self.shares, answers, strict=True)), vectors

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send("")
        for process in self._processes:
            process.join()


def run_job(checkpoint: Path, file: str, output: str) -> tuple[float, np.ndarray]:
    """Texts/s of the job in steady state, and its vectors; both places are paths or URIs."""
    request = EmbedRequest(file, checkpoint, output, shard_rows=SHARD_ROWS)
    with tempfile.TemporaryDirectory() as times:
        embed_files(request, actors=ACTORS, worker=partial(TimedWorker, Path(times)))
        rate = steady_rate(Path(times))
    store, place = open_location(output)
    column = pq.read_table(f"{place}/vectors", filesystem=store)["vector"].combine_chunks()
    return rate, column.flatten().to_numpy().reshape(len(column), -1)


def steady_rate(folder: Path) -> float:
    """Rows/s over the time in which every actor works, from the finish times of their shards."""
    finished: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            moment, rows = line.split()
            finished[path.name].append((float(moment), int(rows)))
    if len(finished) != ACTORS:
        raise SystemExit(f"{len(finished)} actors worked instead of {ACTORS}; use more texts")
    begin = max(times[0][0] for times in finished.values())
    end = min(times[-1][0] for times in finished.values())
    rate = 0.0
    for times in finished.values():
        inside = [(moment, rows) for moment, rows in times if begin <= moment <= end]
        if len(inside) < 2:
            raise SystemExit("an actor made too few shards to have a steady state; use more texts")
        rate += sum(rows for _, rows in inside[1:]) / (inside[-1][0] - inside[0][0])
    return rate


def check_agreement(job: np.ndarray, engines: np.ndarray) -> float:
    """Smallest cosine of the two; ends the program when they are not the same vectors."""
    smallest = float((job * engines).sum(axis=1).min())
    if smallest < 0.999:  # in bf16, where a vector depends a little on its batch
        raise SystemExit(f"job and engine disagree: smallest cosine {smallest:.4f}")
    return smallest


def main() -> None:
    """Compare the vectors, then take turns: engines, job, engines, remote job, engines, job, ..., engines."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4, help="first layers of the model to keep")
    options: argparse.Namespace = parser.parse_args()
    logs.configure("WARNING")
    texts = natural_texts((8 if options.quick else 12) * SHARD_ROWS)
    with tempfile.TemporaryDirectory() as temporary, s3_server() as server:
        folder = Path(temporary)
        base = prepare_base_model("smollm2-135m", workspace() / "models", layers=options.layers)
        save_untrained(base, folder / "model", Contract())
        server.open("bucket")
        places: dict[str, Callable[[str], str]] = {
            "embed_job": lambda name: str(folder / name),
            "embed_job_remote": lambda name: server.uri(f"bucket/{name}"),
        }
        for place in places.values():
            store, path = open_location(place("texts.parquet"))
            pq.write_table(pa.table({"text": texts}), path, filesystem=store)
        engines = Engines(folder / "model", texts)
        connect(num_cpus=ACTORS)
        before, expected = engines.run()
        engine_rates, cosines = [before], []
        rates: dict[str, list[float]] = {name: [] for name in places}
        ratios: dict[str, list[float]] = {name: [] for name in places}
        for turn in range(1 if options.quick else 2):
            for name, place in places.items():
                rate, vectors = run_job(folder / "model", place("texts.parquet"), place(f"out-{turn}"))
                cosines.append(check_agreement(vectors, expected))
                engine_rates.append(engines.run()[0])
                rates[name].append(rate)
                ratios[name].append(rate / statistics.mean(engine_rates[-2:]))
        one_list, _ = engines.run("one")
        engines.close()
    detail = {
        "texts": len(texts),
        "layers": options.layers,
        "shard_rows": SHARD_ROWS,
        "engine_texts_per_second": [round(rate) for rate in engine_rates],
        "engine_one_list_texts_per_second": round(one_list),
        "smallest_cosine": round(min(cosines), 6),
    }
    bars = [
        Bar(
            name,
            round(statistics.median(ratios[name]), 3),
            goal,
            "higher",
            (min(ratios[name]), max(ratios[name])),
            detail | {"job_texts_per_second": [round(rate) for rate in rates[name]]},
        )
        for name, goal in GOALS.items()
    ]
    write_report(bars, options.json)


if __name__ == "__main__":
    main()
