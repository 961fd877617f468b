"""One endpoint by three paths, to tell what Ray Serve adds to this machine alone.

    python benchmarks/serving_paths.py [--quick] [--precision auto|bf16|fp32] --json OUT

Each serves the model of benchmarks/serving.py, with one thread and one replica. A request passes
    local       front -> replica, over a socket
    proxy       Serve's proxy -> front end -> replica, as Ray is started without settings
    haproxy     HAProxy -> front end -> replica, as `rayembed serve` starts Ray
Each path of Serve runs next to the local one, and the two take turns.

The bars are the goals at which the local path would not be needed: of its added latency at most 1.5 times,
of its throughput at least 0.9, and 1,500 requests a second that compute nothing (GET /health/live).
"""

import asyncio
import statistics
import time
from pathlib import Path
from typing import Literal

import aiohttp
from harness import Bar, arguments, ratio_bar, write_report
from serving import (
    LEAST_COSINE,
    Server,
    compare,
    latencies,
    load,
    own_command,
    precision_here,
    prepare_models,
    running,
    texts_of,
    wait_for,
    workloads,
)

SERVE = ["--on", "ray", "--set", "ingress_replicas=1"]
PATHS = {
    "local": ([], ["--on", "local"]),
    "proxy": (["RAY_SERVE_ENABLE_HA_PROXY=0", "RAY_SERVE_THROUGHPUT_OPTIMIZED=0"], SERVE),
    "haproxy": ([], SERVE),
}


async def requests_of_nothing(server: Server, seconds: float) -> float:
    """Requests a second that compute nothing, of 16 clients in a closed loop."""
    done = 0
    url = server.url.removesuffix("/v1") + "/health/live"
    async with aiohttp.ClientSession() as session:
        started = time.perf_counter()

        async def client() -> None:
            nonlocal done
            while time.perf_counter() < started + seconds:
                async with session.get(url) as response:
                    await response.read()
                    assert response.status == 200, (server.name, response.status)
                done += 1

        await asyncio.gather(*(client() for _ in range(16)))
        return done / (time.perf_counter() - started)


def measure(server: Server, chosen: dict, seconds: float) -> None:
    """One turn of a server."""
    served, model = latencies(server, texts_of([12] * 60, 5))
    found = {"latency": served - model, "requests": asyncio.run(requests_of_nothing(server, seconds))}
    for workload, (clients, requests) in chosen.items():
        found[workload], tail = asyncio.run(load(server, clients, requests, seconds))
        server.tails.setdefault(workload, []).append(tail)
    for name, value in found.items():
        server.rates.setdefault(name, []).append(value)
    print(server.name, {name: round(value, 2) for name, value in found.items()}, flush=True)


def compared(served: Server, local: Server, chosen: dict, setting: dict) -> list[Bar]:
    """The bars of one path of Ray Serve."""

    def ratio(name: str, goal: float, better: Literal["higher", "lower"] = "higher") -> Bar:
        detail = setting | {
            each.name: {"rounds": each.rates[name], "p99_ms": each.tails.get(name)}
            for each in (local, served)
        }
        rates = served.rates[name], local.rates[name]
        return ratio_bar(f"serve_{served.name}_{name}", *rates, goal=goal, better=better, detail=detail)

    rates = served.rates["requests"]
    return [
        ratio("latency", 1.5, "lower"),
        *(ratio(workload, 0.9) for workload in chosen),
        Bar(
            f"serve_{served.name}_requests",
            statistics.median(rates),
            1500,
            "higher",
            (min(rates), max(rates)),
            setting | {"rates": {each.name: each.rates["requests"] for each in (local, served)}},
        ),
    ]


def main() -> None:
    """Start everything, measure in turns, write the report."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "rayembed" / "peers")
    parser.add_argument("--precision", choices=["auto", *LEAST_COSINE], default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    rounds, seconds = (1, 2.0) if options.quick else (options.rounds, options.seconds)
    precision = precision_here(options.precision)
    checkpoint, _ = prepare_models(options.peers / "models")
    settings = {"precision": options.precision, "num_cpus": 1}
    chosen = workloads(options.quick)
    bars: list[Bar] = []
    for other in list(PATHS)[1:]:
        servers = [Server(path, f"http://127.0.0.1:{8721 + n}/v1") for n, path in enumerate(["local", other])]
        commands = [
            ["env", *PATHS[each.name][0], *own_command(checkpoint, 8721 + n, settings), *PATHS[each.name][1]]
            for n, each in enumerate(servers)
        ]
        with running(commands, {"OMP_NUM_THREADS": "1"}) as processes:
            for server, process in zip(servers, processes, strict=True):
                wait_for(server, process)
            cosine = asyncio.run(compare(servers, texts_of([3, 12, 80, 300], 9), LEAST_COSINE[precision]))
            for turn in range(rounds):
                for server in servers[turn % 2 :] + servers[: turn % 2]:
                    measure(server, chosen, seconds)
        setting = {"precision": precision, "lowest_cosine": cosine, "rounds": rounds, "seconds": seconds}
        local, served = servers
        bars += compared(served, local, chosen, setting)
    write_report(bars, options.json)


if __name__ == "__main__":
    main()
