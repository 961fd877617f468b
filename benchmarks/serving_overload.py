"""The endpoint at three times its capacity: only 200 and 429, a bounded wait, flat memory, quick recovery.

    python benchmarks/serving_overload.py [--quick] [--seconds 60] --json OUT

Requests of one 12-word text arrive at a fixed rate whether or not earlier ones were answered.
"""

import asyncio
import re
import statistics
import time
import urllib.request
from collections import Counter
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from harness import Bar, arguments, write_report
from serving import NAME, Server, idle_latency, load, own_command, prepare_models, running, texts_of, wait_for

FACTOR = 3
QUEUE_S = 2


async def arrive(server: Server, rate: float, seconds: float) -> tuple[Counter, list[float], list[float]]:
    """Statuses, seconds of the admitted requests, and the arrival times of the refused ones."""
    statuses: Counter = Counter()
    admitted: list[float] = []
    waits: list[float] = []
    texts = texts_of([12] * 64, 7)

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        started = time.perf_counter()
        try:
            body = {"model": NAME, "input": texts[number % len(texts)]}
            async with session.post(f"{server.url}/embeddings", json=body) as response:
                await response.read()
                statuses[response.status] += 1
                if response.status == 200:
                    admitted.append(time.perf_counter() - started)
                elif response.status == 429:
                    waits.append(float(response.headers["Retry-After"]))
        except aiohttp.ClientError as error:
            statuses[type(error).__name__] += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        started = time.perf_counter()
        number = 0
        while (now := time.perf_counter() - started) < seconds:
            while number < now * rate:
                group.create_task(one(session, number))
                number += 1
            await asyncio.sleep(0.002)
    return statuses, admitted, waits


async def recovery_seconds(server: Server, usual_ms: float) -> float:
    """Seconds until five requests in a row take no more than twice the usual time."""
    started = time.perf_counter()
    while await idle_latency(server, texts_of([12] * 5, 8)) > 2 * usual_ms:
        if time.perf_counter() - started > 60:
            break
    return time.perf_counter() - started


def replica_memory(url: str) -> float:
    """Resident MiB of the model replica."""
    page = urllib.request.urlopen(f"{url}/debug").read().decode()
    pid = int(re.search(r"EmbeddingReplica#\w+</code></td><td>(\d+)<", page)[1])
    return psutil.Process(pid).memory_info().rss / 2**20


def main() -> None:
    """Measure the capacity, exceed it, watch the recovery."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="length of the overload")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "rayembed" / "peers")
    options = parser.parse_args()
    seconds = 5.0 if options.quick else options.seconds

    import torch

    from rayembed.engine.engine import Engine

    torch.set_num_threads(1)

    checkpoint, _ = prepare_models(options.peers / "models")
    engine = Engine.load(checkpoint, device="cpu", precision="fp32")
    texts = texts_of([12] * 64, 7)
    engine.encode(texts)
    started = time.perf_counter()
    tokens_per_second = sum(engine.encode(texts).token_counts) / (time.perf_counter() - started)
    settings: dict[str, str | int] = {
        "precision": "fp32",
        "num_cpus": 1,
        "token_budget": 1024,
        "max_queued_tokens": int(QUEUE_S * tokens_per_second),
    }
    url = "http://127.0.0.1:8711"
    server = Server("rayembed", f"{url}/v1")
    with running([own_command(checkpoint, 8711, settings)], {"OMP_NUM_THREADS": "1"}) as [process]:
        wait_for(server, process)
        singles = [[text] for text in texts]
        asyncio.run(load(server, 16, singles, 5))  # the first seconds are slower
        capacity, _ = asyncio.run(load(server, 16, singles, 5))
        usual_ms = asyncio.run(idle_latency(server, texts_of([12] * 20, 8)))
        asyncio.run(load(server, 1, [texts * 4], 5))  # full batches, for which memory grows once
        before = replica_memory(url)
        statuses, admitted, waits = asyncio.run(arrive(server, FACTOR * capacity, seconds))
        recovery = asyncio.run(recovery_seconds(server, usual_ms))
        after = replica_memory(url)
    others = {str(status): count for status, count in statuses.items() if status not in (200, 429)}
    detail = {
        "capacity_texts_per_second": round(capacity, 1),
        "statuses": {str(status): count for status, count in statuses.items()},
        "admitted_p50_ms": round(statistics.median(admitted) * 1000),
        "retry_after_s": [min(waits, default=0), max(waits, default=0)],
        "replica_mib": [round(before), round(after)],
        "seconds": seconds,
    }
    figures = [
        ("serve_overload_failures", float(sum(others.values())), 0.0),
        ("serve_overload_p99_ms", float(np.percentile(admitted, 99)) * 1000, 3000.0 * QUEUE_S),
        ("serve_overload_recovery_s", recovery, 5.0),
        ("serve_overload_memory_mib", after - before, 50.0),
    ]
    bars = [Bar(name, value, goal, "lower", (value, value), detail) for name, value, goal in figures]
    write_report(bars, options.json)


if __name__ == "__main__":
    main()
