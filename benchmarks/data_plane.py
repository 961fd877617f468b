"""The data plane: time and memory of a large plan, speed of the stream, and how long a step waits for data.

    python benchmarks/data_plane.py [--quick] [--only plan lanes stream wait start memory] --json OUT

- plan: row references of ten synthetic sources (a fifth of the rows shares documents) are planned and stored.
- lanes: rows are joined with their plan, tokenised, cut and written, in processor seconds next to those of
  the tokenizer alone; and one rank of 64 reads its part of a step next to one rank that reads all.
- stream: one worker takes batches of the quickstart's first stage as fast as a Ray Data job writes them.
- wait: the quickstart's own first stage is trained for some steps; the share of the steps' time that was
  spent waiting is read from its metrics. The first step is reported apart.
- start: seconds from the command `rayembed train quickstart` to the end of its first step, with the sources
  and the base model there. The goal, START, is a minute: no quiet figure of earlier code was recorded.
- memory: a consumer that does nothing takes a hundred thousand small steps; the slope of its memory and of
  the process that writes lanes is fitted over the second half.

The quickstart's data and base model are taken from the workspace (RAYEMBED_HOME) or built there. What the
quickstart consumes is in CONSUMED, measured on two cores with AMX.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from harness import Bar, arguments, write_report
from inputs import RECIPE, quickstart

from rayembed.common.paths import resolve
from rayembed.common.ray_cluster import connect
from rayembed.config.blend import SourceConfig
from rayembed.config.run import RunConfig
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.lane_folder import LaneFolder
from rayembed.data.plan import PlannedSource, plan_batches
from rayembed.data.plan_store import PlanReader, write_plan
from rayembed.data.prepared import PreparedRows, write_index, write_rows
from rayembed.data.stream import StreamSpec, lanes_written, local_batches, stream_batches
from rayembed.model.base_model import prepare_base_model
from rayembed.records.schema import pair_row, to_table
from rayembed.training.prepare import planned_source, resolve_data

CONSUMED = 3400.0  # tokens per second that the quickstart's training consumes
START = 60.0
ONE_STEP = ("stages.retrieval.steps=1", "stages.retrieval.warmup_steps=0", "stages.blend=null")
BATCH_SIZE = 128
PARTS = ("plan", "lanes", "stream", "wait", "start", "memory")


def synthetic_source(name: str, rows: int, seed: int) -> PlannedSource:
    """Rows with a query and a document each; a fifth of them shares its document with another row."""
    generator = np.random.default_rng(seed)
    keys = generator.integers(0, 1 << 63, (rows, 2), dtype=np.uint64)
    sharing = rows // 5
    keys[:sharing, 1] = keys[generator.integers(0, sharing // 2, sharing), 1]

    def read():
        for start in range(0, rows, 1 << 18):
            piece = keys[start : start + (1 << 18)]
            yield np.repeat(np.arange(start, start + len(piece)), 2), piece.ravel()

    return PlannedSource(name, rows, True, keys=read)


def plan_once(rows: int) -> None:
    """Plan in this process and print seconds and peak memory, so that every round starts from nothing."""
    sources = [synthetic_source(f"source-{index}", rows // 10, index) for index in range(10)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        batches = plan_batches(sources, batch_size=BATCH_SIZE, steps=rows // BATCH_SIZE, seed=1)
        write_plan(Path(folder) / "plan", batches, {"rows": rows})
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    cpu = time.process_time()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_gb": peak, "stored_mb": size / 1e6}))


def plan_bars(quick: bool) -> list[Bar]:
    """`plan_rows` and `plan_memory`."""
    rows, rounds = (1_000_000, 1) if quick else (10_000_000, 2)
    command = [sys.executable, __file__, "--plan-rows", str(rows)]
    results = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(rounds)
    ]
    last = results[-1]
    detail = {"rows": rows, "batch_size": BATCH_SIZE, "sources": 10}
    detail |= {"stored_mb": last["stored_mb"], "cpu_seconds_with_imports": last["cpu_seconds"]}
    return [
        _lower("plan_rows", [result["seconds"] for result in results], 40, detail | {"unit": "s"}),
        _lower(
            "plan_memory", [result["peak_gb"] for result in results], 1.2, detail | {"unit": "GB, peak RSS"}
        ),
    ]


def _lower(name: str, values: list[float], goal: float, detail: dict[str, Any]) -> Bar:
    return Bar(name, statistics.median(values), goal, "lower", (min(values), max(values)), detail)


def lanes_bars(quick: bool) -> list[Bar]:
    """`lanes_rows` and `rank_cost`, on rows of a query, a positive and two negatives of 10 to 100 words."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a rate for each core
    torch.set_num_threads(1)  # as where batches are read
    rows, steps = (2048, 2) if quick else (4096, 3)
    with tempfile.TemporaryDirectory() as folder:
        spec = _long_batches(Path(folder), rows, steps)
        cutter, plan = spec.cutter(), PlanReader(spec.plan)
        lanes, tokenizer = spec.lanes.begin(), load_tokenizer(spec.tokenizer)
        ratios, rates = [], []
        for number in lanes.missing():
            [step] = lanes.steps_in(number)
            started = time.process_time()
            lanes.write(number, [cutter.cut(plan.read(step))])
            ours = time.process_time() - started
            texts = _texts_of(spec, step)
            started = time.process_time()
            for instruction, group in texts.items():
                spec.contract.tokenize(tokenizer, group, instruction or None)
            ratios.append((time.process_time() - started) / ours)
            rates.append(rows / ours)
        costs: dict[int, list[float]] = {1: [], 64: []}
        for _ in range(4 if quick else 11):
            for ranks, found in costs.items():
                started = time.process_time()
                for batch in lanes.batches(0, steps, rank=ranks - 1, world_size=ranks):
                    assert batch.num_queries >= rows // ranks
                found.append((time.process_time() - started) / steps)
    shares = [many / one for many, one in zip(costs[64][1:], costs[1][1:], strict=True)]  # the first warms up
    detail = {"rows_of_a_batch": rows, "rows_per_second_of_a_core": statistics.median(rates)}
    cost = {"seconds_at_1": statistics.median(costs[1]), "seconds_at_64": statistics.median(costs[64])}
    return [
        Bar("lanes_rows", statistics.median(ratios), 0.8, "higher", (min(ratios), max(ratios)), detail),
        _lower("rank_cost", shares, 1 / 32, {"rows_of_a_batch": rows} | cost),
    ]


def _long_batches(folder: Path, rows: int, steps: int) -> StreamSpec:
    """A stage of made-up rows."""
    config = quickstart(steps=steps)
    generator = np.random.default_rng(1)
    beginnings, ends = ("re", "in", "de", "con", "per"), ("form", "tain", "fer", "port")
    words = np.array([beginning + end for beginning in beginnings for end in ends])

    def text(number: int, least: int, most: int) -> str:
        return f"{' '.join(generator.choice(words, generator.integers(least, most)))} {number}"

    made = (
        pair_row(
            text(row, 5, 20),
            [text(row, 10, 100)],
            [text(row + rows * steps * n, 10, 100) for n in (1, 2)],
            dataset="made",
            task_type="retrieval",
        )
        for row in range(rows * steps)
    )
    write_index([write_rows([to_table(made, "pairs")], folder / "rows.arrow")], folder / "rows.json")
    entry = SourceConfig(source="made", weight=1, in_batch_negatives=True, negatives_per_query=2)
    source = planned_source(entry, PreparedRows.open(folder / "rows.json"))
    write_plan(folder / "plan", plan_batches([source], batch_size=rows, steps=steps, seed=1), {"made": rows})
    base = prepare_base_model(config.base_model, resolve(config.models_directory), layers=config.base_layers)
    lanes = LaneFolder.of(str(folder), "lanes", steps=steps, batch_size=rows, workers=1)
    sources = (folder / "rows.json",)
    return StreamSpec(folder / "plan", sources, (entry,), config.contract, str(base), 1, lanes)


def _texts_of(spec: StreamSpec, step: int) -> dict[str, list[str]]:
    """Texts of a step by the instruction in front of them."""
    texts: dict[str, list[str]] = defaultdict(list)
    for row in spec.chooser().choose(PlanReader(spec.plan).read(step)):
        texts[row.instruction].append(row.query)
        for (_, instruction), document in row.texts.items():
            texts[instruction].append(document)
    return texts


def prepared(config: RunConfig, folder: Path) -> StreamSpec:
    """Stream of the first stage."""
    base = prepare_base_model(config.base_model, resolve(config.models_directory), layers=config.base_layers)
    return resolve_data(config)[0].prepare(folder, str(base))


def stream_bars(quick: bool) -> list[Bar]:
    """`stream_ratio`: tokens per second through Ray Data, after the first batch, over what training takes."""
    steps, rounds = (40, 1) if quick else (300, 3)
    connect()
    with tempfile.TemporaryDirectory() as folder:
        spec = prepared(quickstart(steps=steps), Path(folder))
        started = time.perf_counter()
        alone = sum(batch.packed.num_tokens for batch in local_batches(spec, start=0, stop=min(steps, 60)))
        alone /= time.perf_counter() - started
        rates, first = [], []
        for _ in range(rounds):
            started = time.perf_counter()
            with lanes_written(spec) as written:
                stream = stream_batches(written, start=0, stop=steps, rank=0, world_size=1)
                tokens = [next(stream).packed.num_tokens]
                first.append(time.perf_counter() - started)
                tokens += [batch.packed.num_tokens for batch in stream]
                rates.append(sum(tokens) / (time.perf_counter() - started - first[-1]))
    ratios = [rate / CONSUMED for rate in rates]
    detail = {
        "tokens_per_second": statistics.median(rates),
        "seconds_to_first_batch": statistics.median(first),
        "tokens_per_second_in_one_process": alone,
        "consumed_tokens_per_second": CONSUMED,
        "steps": steps,
    }
    return [Bar("stream_ratio", statistics.median(ratios), 20, "higher", (min(ratios), max(ratios)), detail)]


def wait_bars(quick: bool) -> list[Bar]:
    """`data_wait`: share of the steps' time that training waited for its batch."""
    from rayembed.training.run import train

    steps = 6 if quick else 16
    with tempfile.TemporaryDirectory() as folder:
        config = quickstart(steps=steps, warmup_steps=2).model_copy(update={"output": folder})
        train(config)
        lines = (Path(folder) / config.name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    waits = [_waited(record) for record in records]
    shares = [wait / record["seconds"] for wait, record in zip(waits, records, strict=True)][1:]
    detail = {
        "steps": steps,
        "median_wait_ms": 1e3 * statistics.median(waits[1:]),
        "median_step_s": statistics.median(record["seconds"] for record in records[1:]),
        "first_step_wait_s": waits[0],
    }
    total = sum(waits[1:]) / sum(record["seconds"] for record in records[1:])
    return [Bar("data_wait", total, 0.01, "lower", (min(shares), max(shares)), detail)]


def _waited(record: dict) -> float:
    """Seconds of a step that went into waiting for data."""
    return record["data_seconds"] if "data_seconds" in record else record["phases"]["data"]


def start_bars(quick: bool) -> list[Bar]:
    """`train_start`: seconds from the command to the first line of metrics."""
    found = []
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "rayembed", "train", str(RECIPE)]
            for setting in (f"output={folder}", *ONE_STEP):
                command += ["--set", setting]
            metrics = Path(folder) / "quickstart" / "metrics.jsonl"
            started = time.time()
            with subprocess.Popen(command) as process:
                while not (metrics.is_file() and metrics.stat().st_size):
                    if process.poll() is not None:
                        raise RuntimeError("the training ended before its first step")
                    time.sleep(0.05)
                found.append(time.time() - started)
    return [_lower("train_start", found, START, {"unit": "s", "runs": len(found)})]


def memory_bars(quick: bool) -> list[Bar]:
    """`stream_memory`: growth of memory with the number of steps, in MB a hundred thousand steps."""
    steps = 1_000 if quick else 100_000
    connect()
    with tempfile.TemporaryDirectory() as folder:
        config = quickstart(steps=steps, batch_size=2)
        spec = prepared(config, Path(folder))
        process = psutil.Process()
        samples: list[tuple[int, float, float]] = []
        started = time.perf_counter()
        with lanes_written(spec) as written:
            for batch in stream_batches(written, start=0, stop=steps, rank=0, world_size=1):
                if batch.step % max(steps // 200, 1) == 0:
                    samples.append((batch.step, _own_memory(process), _memory_of_writers(process)))
        seconds = time.perf_counter() - started
    late = np.array(samples[len(samples) // 2 :])
    slopes = [float(np.polyfit(late[:, 0], late[:, column], 1)[0]) * 1e5 for column in (1, 2)]
    detail = {
        "steps": steps,
        "unit": "MB a 100,000 steps, consumer and writing process together",
        "consumer_slope": slopes[0],
        "writer_slope": slopes[1],
        "consumer_mb_at_half_and_end": [late[0, 1], late[-1, 1]],
        "writer_mb_at_half_and_end": [late[0, 2], late[-1, 2]],
        "seconds": seconds,
    }
    return [Bar("stream_memory", sum(slopes), 50, "lower", (min(slopes), max(slopes)), detail)]


def _own_memory(process: psutil.Process) -> float:
    """Memory in MB that is not shared with other processes."""
    return process.memory_full_info().uss / 1e6


def _memory_of_writers(process: psutil.Process) -> float:
    writers = [child for child in process.children(recursive=True) if "MapWorker" in child.name()]
    named = writers or [
        child for child in process.children(recursive=True) if "MapWorker" in " ".join(child.cmdline())
    ]
    return sum(_own_memory(child) for child in named)


def main() -> None:
    """Measure the chosen parts and report."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--plan-rows", type=int, help="plan once in this process (used by the benchmark)")
    options = parser.parse_args()
    if options.plan_rows:
        plan_once(options.plan_rows)
        return
    measures = {"plan": plan_bars, "lanes": lanes_bars, "stream": stream_bars, "wait": wait_bars}
    measures |= {"start": start_bars, "memory": memory_bars}
    bars: list[Bar] = []
    for part in options.only:
        bars += measures[part](options.quick)
        write_report(bars, options.json)  # after every part: one that fails does not take the others with it


if __name__ == "__main__":
    main()
