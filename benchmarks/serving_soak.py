"""The endpoint under mixed and hostile load for an hour: no unexpected answer, and memory that stays flat.

    python benchmarks/serving_soak.py [--quick] [--seconds 3600] --json OUT

Clients take turns without a break: short texts, texts of very different lengths, batches of 32, requests that
are refused for what they say, requests whose client leaves after 20 ms, bodies made to take time or memory,
and a sender who stops in the middle.

serve_soak_failures: answers that were not expected
serve_soak_http_mib_per_hour, serve_soak_replica_mib_per_hour: slope of a straight line through the resident
    memory of the process that speaks HTTP and of the model replica, over the last two thirds of the time
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from harness import Bar, arguments, write_report
from serving import NAME, Server, own_command, prepare_models, running, texts_of, wait_for, workloads
from serving_overload import replica_memory

REFUSED: Sequence[tuple[dict[str, Any], int]] = [
    ({"model": "another", "input": "x"}, 404),
    ({"model": NAME, "input": ["x"] * 2049}, 400),
    ({"model": NAME, "input": 7}, 400),
    ({"model": NAME, "input": "x", "dimensions": 100_000}, 400),
    ({"model": NAME, "input": [[10**9]]}, 400),  # token ids are refused
]
HOSTILE: Sequence[tuple[str, str]] = [
    ("negative ids", "[" + "-1, " * 500_000 + "-1]"),
    ("lists", "[" + "[], " * 50_000 + "[]]"),
    ("depth", "[" * 60_000),
    ("a long text", '"' + "some words " * 700_000 + '"'),
    ("a long word", '"' + "a" * 4_000_000 + '"'),
    ("nulls", '["x", ' + "null, " * 200_000 + "null]"),
    ("objects", "[" + '{"text": 1}, ' * 100_000 + "{}]"),
    ("a long number", "9" * 4_000_000),
    ("escapes", '"' + "\\u00e9" * 1_000_000 + '"'),
    ("many long texts", "[" + ", ".join(['"' + "some words " * 370 + '"'] * 500) + "]"),
    ("too large", '"' + "x" * 9_000_000 + '"'),
]
_JSON = {"Content-Type": "application/json"}
SAMPLE_S = 5.0


async def post(session: aiohttp.ClientSession, server: Server, body: dict[str, Any]) -> int:
    """Status of one request."""
    async with session.post(f"{server.url}/embeddings", json=body) as response:
        await response.read()
        return response.status


async def soak(server: Server, pid: int, seconds: float) -> tuple[Counter, list[tuple[float, float, float]]]:
    """Answers by "expected" or what came instead; seconds, MiB of the HTTP process and of the replica."""
    answers: Counter = Counter()
    memory: list[tuple[float, float, float]] = []
    started = time.perf_counter()

    def running_s() -> float:
        return time.perf_counter() - started

    async def client(request: Callable[[int], Awaitable[str]]) -> None:
        number = 0
        while running_s() < seconds:
            answers[await request(number)] += 1
            number += 1

    async def watch() -> None:
        process = psutil.Process(pid)
        while running_s() < seconds:
            replica = await asyncio.to_thread(replica_memory, server.url.removesuffix("/v1"))
            memory.append((running_s(), process.memory_info().rss / 2**20, replica))
            await asyncio.sleep(SAMPLE_S)

    async with aiohttp.ClientSession() as session:

        def embeds(inputs: Sequence[Any]) -> Callable[[int], Awaitable[str]]:
            async def request(number: int) -> str:
                status = await post(session, server, {"model": NAME, "input": inputs[number % len(inputs)]})
                return "expected" if status == 200 else str(status)

            return request

        async def refused(number: int) -> str:
            body, expected = REFUSED[number % len(REFUSED)]
            status = await post(session, server, body)
            await asyncio.sleep(0.1)
            return "expected" if status == expected else f"{status} for {expected}"

        async def leaves(number: int) -> str:
            try:
                await asyncio.wait_for(post(session, server, {"model": NAME, "input": batches[0]}), 0.02)
            except TimeoutError:
                await asyncio.sleep(0.2)
            return "expected"

        async def hostile(number: int) -> str:
            kind, value = HOSTILE[number % len(HOSTILE)]
            body = f'{{"model": "{NAME}", "input": {value}}}'.encode()
            try:
                async with session.post(f"{server.url}/embeddings", data=body, headers=_JSON) as response:
                    await response.read()
                    status = response.status
            except aiohttp.ClientConnectionError:  # refused before all of it was sent
                status = 413
            await asyncio.sleep(0.5)
            return "expected" if status == 200 or 400 <= status < 500 else f"{status} for {kind}"

        async def stops(number: int) -> str:
            async def half() -> AsyncIterator[bytes]:
                yield f'{{"model": "{NAME}", "input": "{"x" * 1_000_000}'.encode()
                await asyncio.sleep(3600)

            with contextlib.suppress(TimeoutError):
                request = session.post(f"{server.url}/embeddings", data=half(), headers=_JSON)
                await asyncio.wait_for(request, 10)
            return "expected"

        _, batches = workloads(quick=False)["batch"]
        _, skewed = workloads(quick=False)["skewed"]
        short = texts_of([12] * 256, 1)
        await asyncio.gather(
            watch(),
            *(client(embeds(short[first:])) for first in range(4)),
            client(embeds(skewed)),
            client(embeds(batches)),
            client(refused),
            client(leaves),
            client(hostile),
            *(client(stops) for _ in range(4)),
        )
    return answers, memory


def slope(times: Sequence[float], sizes: Sequence[float]) -> float:
    """MiB an hour over the last two thirds of the samples."""
    first = len(times) // 3
    return float(np.polyfit(times[first:], sizes[first:], 1)[0]) * 3600


def main() -> None:
    """Serve, load, watch, report."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "rayembed" / "peers")
    options = parser.parse_args()
    seconds = 20.0 if options.quick else options.seconds
    checkpoint, _ = prepare_models(options.peers / "models")
    server = Server("rayembed", "http://127.0.0.1:8711/v1")
    command = own_command(checkpoint, 8711, {"precision": "fp32", "num_cpus": 1})
    with running([command], {"OMP_NUM_THREADS": "1"}) as [process]:
        wait_for(server, process)
        answers, memory = asyncio.run(soak(server, process.pid, seconds))
    times, http, replica = zip(*memory, strict=True)
    failures = sum(count for answer, count in answers.items() if answer != "expected")
    detail = {
        "seconds": seconds,
        "answers": dict(answers),
        "http_mib": [round(size) for size in http[:: max(len(http) // 15, 1)]],
        "replica_mib": [round(size) for size in replica[:: max(len(replica) // 15, 1)]],
    }
    figures = [
        ("serve_soak_failures", float(failures), 0.0),
        ("serve_soak_http_mib_per_hour", slope(times, http), 60.0),
        ("serve_soak_replica_mib_per_hour", slope(times, replica), 60.0),
    ]
    write_report(
        [Bar(name, value, goal, "lower", (value, value), detail) for name, value, goal in figures],
        options.json,
    )


if __name__ == "__main__":
    main()
