"""The endpoint next to infinity-emb and to sentence-transformers and OpenVINO behind FastAPI.

    python benchmarks/serving.py [--quick] [--precision auto|bf16|fp32] --json OUT

All serve one model with the same threads: the packaged SmolLM2-135M cut to six layers, read in both
directions and mean-pooled. infinity-emb gets an environment of its own under --peers. OpenVINO takes part
where it is installed, and our engine then uses it as well where it wins. All servers are up all the time and
take turns under load; their vectors are compared first. The load is a closed loop of clients on this machine.

FastAPI starts a forward pass for each request, 40 at once, each with --threads threads. One server is held
to one pass at a time, so that all have the same threads. Another one is not: it is reported, not compared.

serve_latency_ms: median of one request at a time less the mean of its forward pass, which the replica times;
    in a loop of its own the same pass is shorter (engine_ms), as nothing comes between two of them
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import aiohttp
import numpy as np
from harness import Bar, arguments, ratio_bar, write_report
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "platform"))
WORDS = ["library", "reads", "opens", "returns", "file", "line", "number", "when", "value", "list", "name"]
INFINITY = "infinity-emb[server,torch]==0.0.78"
NAME = "bench"
Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16"}
LEAST_COSINE: dict[Precision, float] = {"fp32": 0.9999, "bf16": 0.99}


@dataclass
class Server:
    """A running endpoint and what it measured."""

    name: str
    url: str
    same_threads: bool = True
    rates: dict[str, list[float]] = field(default_factory=dict)
    tails: dict[str, list[float]] = field(default_factory=dict)


def texts_of(lengths: Sequence[int], seed: int) -> list[str]:
    """Random texts of so many words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=length)) for length in lengths]


def workloads(quick: bool) -> dict[str, tuple[int, list[list[str]]]]:
    """For each workload the number of clients and the requests they take turns with."""
    draw = random.Random(0)
    skewed = [min(512, int(12 * draw.paretovariate(0.8))) for _ in range(64 if quick else 256)]
    return {
        "short": (16, [[text] for text in texts_of([12] * 256, 1)]),
        "skewed": (16, [[text] for text in texts_of(skewed, 2)]),
        "batch": (4, [texts_of([12] * 32, seed) for seed in range(8)]),
    }


def prepare_models(folder: Path) -> tuple[Path, Path]:
    """The checkpoint, and the same weights as a plain sentence-transformers folder."""
    from rayembed.contract import Contract
    from rayembed.model.base_model import prepare_base_model, save_untrained

    checkpoint, plain = folder / NAME, folder / "sentence-transformers"
    if not checkpoint.is_dir():
        base = prepare_base_model("smollm2-135m", folder, layers=6)
        save_untrained(base, checkpoint, Contract(max_length=512, append_eos=False))
    if not plain.is_dir():
        write_plain_folder(checkpoint, plain)
    return checkpoint, plain


def write_plain_folder(checkpoint: Path, target: Path) -> None:
    """Files by the names that sentence-transformers 3 and transformers 4 know."""
    shutil.copytree(checkpoint / "backbone", target)
    shutil.copytree(checkpoint / "tokenizer", target, dirs_exist_ok=True)
    config = json.loads((target / "config.json").read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    (target / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((target / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (target / "sentence_bert_config.json").write_text('{"max_seq_length": 512, "do_lower_case": false}')
    (target / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": config["hidden_size"], "pooling_mode_mean_tokens": True}
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(modules)
    ]
    (target / "modules.json").write_text(json.dumps(entries))


def infinity_python(peers: Path) -> Path:
    """Interpreter of infinity's own environment, made on first use."""
    python = peers / "infinity" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(peers / "infinity")], check=True)
        requirements = [INFINITY, "torch==2.13.0+cpu", "click==8.1.8", "typer==0.12.5"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def own_command(checkpoint: Path, port: int, settings: dict[str, str | int]) -> list[str]:
    """`rayembed serve` of a checkpoint."""
    command = [sys.executable, "-m", "rayembed", "serve", str(checkpoint), "--port", str(port)]
    command += ["--model-name", NAME, "--drain-seconds", "0"]
    return command + [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@contextlib.contextmanager
def running(commands: Sequence[list[str]], environment: dict[str, str]) -> Iterator[list[subprocess.Popen]]:
    """Server processes, ended after the block."""
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    inherited["PYTHONPATH"] = str(ROOT / "platform")
    processes = [subprocess.Popen(command, env=inherited | environment) for command in commands]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def wait_for(server: Server, process: subprocess.Popen) -> None:
    """Until a server answers."""
    deadline = time.monotonic() + 300
    while not answers(server.url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{server.name} did not start")
        time.sleep(0.5)


def answers(url: str) -> bool:
    """Whether anything speaks HTTP there."""
    try:
        urllib.request.urlopen(url, timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


async def ask(session: aiohttp.ClientSession, server: Server, texts: list[str]) -> np.ndarray:
    """Vectors of one request."""
    body = {"model": NAME, "input": texts}
    async with session.post(f"{server.url}/embeddings", json=body) as response:
        answer = await response.json()
        assert response.status == 200, (server.name, response.status)
    return np.array([item["embedding"] for item in answer["data"]], dtype=np.float32)


async def load(
    server: Server, clients: int, requests: list[list[str]], seconds: float
) -> tuple[float, float]:
    """Texts a second and the 99th percentile of the request time in milliseconds, in a closed loop."""
    times: list[float] = []
    done = 0
    async with aiohttp.ClientSession() as session:
        end = time.perf_counter() + seconds

        async def client(number: int) -> None:
            nonlocal done
            position = number
            while (started := time.perf_counter()) < end:
                texts = requests[position % len(requests)]
                await ask(session, server, texts)
                times.append(time.perf_counter() - started)
                done += len(texts)
                position += clients

        started = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(clients)))
        elapsed = time.perf_counter() - started
    return done / elapsed, float(np.percentile(times, 99)) * 1000


async def compare(servers: Sequence[Server], texts: list[str], least: float) -> float:
    """Lowest cosine between the first server's vectors and any other's; ends the program below `least`."""
    async with aiohttp.ClientSession() as session:
        vectors = [await ask(session, server, texts) for server in servers]
    lowest = min(float((vectors[0] * other).sum(axis=1).min()) for other in vectors[1:])
    if lowest < least:
        raise SystemExit(f"the servers do not compute the same vectors: cosine {lowest:.6f}")
    return lowest


async def idle_latency(server: Server, texts: list[str]) -> float:
    """Median milliseconds of one request at a time."""
    async with aiohttp.ClientSession() as session:
        times = []
        for text in texts:
            started = time.perf_counter()
            await ask(session, server, [text])
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def computed(server: Server) -> tuple[float, float]:
    """Seconds and number of all forward passes so far, as our endpoint counts them."""
    page = urllib.request.urlopen(server.url.removesuffix("/v1") + "/metrics").read().decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]

    def total(suffix: str) -> float:
        return sum(sample.value for sample in samples if sample.name == f"rayembed_compute_seconds_{suffix}")

    return total("sum"), total("count")


def latencies(server: Server, texts: list[str]) -> tuple[float, float]:
    """Milliseconds of one request at a time, the median, and of its forward pass, the mean."""
    seconds, passes = computed(server)
    served = asyncio.run(idle_latency(server, texts))
    seconds_after, passes_after = computed(server)
    return served, (seconds_after - seconds) / (passes_after - passes) * 1000


def precision_here(asked: Literal["auto", "fp32", "bf16"]) -> Precision:
    """The number format that `auto` is on this machine's processor; any other as it is."""
    import torch

    from rayembed.model.precision import resolve_precision

    named: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16"}
    return named[resolve_precision(asked, torch.device("cpu"))]


def engine_figures(
    checkpoint: Path, threads: int, requests: list[list[str]], precision: Precision
) -> tuple[float, float]:
    """In process: texts a second in full batches, and median milliseconds of a single text."""
    import torch

    from rayembed.engine.engine import Engine

    torch.set_num_threads(threads)
    engine = Engine.load(checkpoint, device="cpu", precision=precision)
    texts = [text for request in requests for text in request]
    engine.encode(texts[:8])
    times = []
    for text in texts[:40]:
        started = time.perf_counter()
        engine.encode([text])
        times.append(time.perf_counter() - started)
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        engine.encode(texts)
        rates.append(len(texts) / (time.perf_counter() - started))
    return statistics.median(rates), statistics.median(times) * 1000


def compared(name: str, workload: str, goal: float, servers: Sequence[Server], setting: dict) -> Bar:
    """Our texts a second over those of the best peer with as many threads, round by round."""
    ours, *peers = (server for server in servers if server.same_threads)
    best = [max(rates) for rates in zip(*(peer.rates[workload] for peer in peers), strict=True)]
    detail = setting | {
        server.name: {
            "texts_per_second": [round(rate, 1) for rate in server.rates[workload]],
            "p99_ms": [round(tail) for tail in server.tails[workload]],
        }
        for server in servers
    }
    return ratio_bar(name, ours.rates[workload], best, goal=goal, detail=detail)


def main() -> None:
    """Start everything, measure in turns, write the report."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "rayembed" / "peers")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each server")
    parser.add_argument(
        "--precision",
        choices=["auto", *LEAST_COSINE],
        default="auto",
        help="of all servers; auto: what our engine takes on this machine",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    rounds, seconds = (1, 2.0) if options.quick else (options.rounds, options.seconds)

    checkpoint, plain = prepare_models(options.peers / "models")
    here = ROOT / "benchmarks" / "peers"
    precision = precision_here(options.precision)
    threads, dtype = str(options.threads), DTYPES[precision]
    environment = {"OMP_NUM_THREADS": threads, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    infinity = [
        *(str(infinity_python(options.peers)), str(here / "infinity_server.py"), "v2"),
        *("--model-id", str(plain), "--served-model-name", NAME, "--host", "127.0.0.1", "--port", "8712"),
        *("--engine", "torch", "--device", "cpu", "--dtype", dtype),
        *("--no-bettertransformer", "--no-model-warmup"),
    ]

    def fastapi(backend: str, port: int, passes: int) -> list[str]:
        script = str(here / "fastapi_server.py")
        return [sys.executable, script, str(plain), str(port), threads, str(passes), dtype, backend]

    own = own_command(checkpoint, 8711, {"precision": options.precision, "num_cpus": options.threads})
    plain_server = "sentence-transformers + FastAPI"
    served = [
        (Server("rayembed", "http://127.0.0.1:8711/v1"), own),
        (Server("infinity 0.0.78", "http://127.0.0.1:8712"), infinity),
        (Server(plain_server, "http://127.0.0.1:8713"), fastapi("torch", 8713, 1)),
        (
            Server(f"{plain_server}, 40 passes at once", "http://127.0.0.1:8714", same_threads=False),
            fastapi("torch", 8714, 40),
        ),
    ]
    if find_spec("openvino"):
        served.append((Server("OpenVINO + FastAPI", "http://127.0.0.1:8715"), fastapi("openvino", 8715, 1)))
    else:
        print("without OpenVINO + FastAPI: openvino is not installed")
    servers, commands = zip(*served, strict=True)
    chosen = workloads(options.quick)
    engine_rate, engine_ms = engine_figures(checkpoint, options.threads, chosen["short"][1], precision)

    with running(commands, environment) as processes:
        for server, process in zip(servers, processes, strict=True):
            wait_for(server, process)
        cosine = asyncio.run(compare(servers, texts_of([3, 12, 80, 300], 9), LEAST_COSINE[precision]))
        latency, model_ms = latencies(servers[0], texts_of([12] * 40, 5))
        for _ in range(rounds):
            for workload, (clients, requests) in chosen.items():
                for server in servers:
                    rate, tail = asyncio.run(load(server, clients, requests, seconds))
                    server.rates.setdefault(workload, []).append(rate)
                    server.tails.setdefault(workload, []).append(tail)
                    print(f"{workload} {server.name}: {rate:.1f} texts/s, p99 {tail:.0f} ms", flush=True)

    setting = {
        "threads": options.threads,
        "precision": precision,
        "lowest_cosine": cosine,
        "seconds": seconds,
        "rounds": rounds,
    }
    added = latency - model_ms
    bars = [
        compared("serve_short", "short", 2.0, servers, setting),
        compared("serve_skewed", "skewed", 2.0, servers, setting),
        compared("serve_batch", "batch", 1.3, servers, setting),
        ratio_bar(
            "serve_engine",
            servers[0].rates["batch"],
            [engine_rate] * rounds,
            goal=0.85,
            detail=setting | {"engine_texts_per_second": engine_rate, "workload": "batch"},
        ),
        Bar(
            "serve_latency_ms",
            added,
            3,
            "lower",
            (added, added),
            setting | {"served_ms": latency, "model_ms": model_ms, "engine_ms": engine_ms},
        ),
    ]
    write_report(bars, options.json)


if __name__ == "__main__":
    main()
