"""Evaluation on a cluster against plain mteb in one process: equal scores, time, and what a kill costs.

python benchmarks/evaluation.py --json OUT [--quick] [--only eval_equal,...] [--checkpoint FOLDER]

eval_equal     largest difference of a main score: two actors, all text sets in shards, on rayembed-offline
eval_makespan  share of the ideal in simulated runs of the 67 units of MTEB(eng, v1) on 1, 8 and 64 workers
eval_overhead  time on two actors of one thread over plain mteb with two threads, same tasks and weights
eval_resume    finished shards encoded again per actor after an actor, a node and the driver are killed
"""

import heapq
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import ray
import torch
from evaluation_resume import resume
from harness import Bar, arguments, interleave, ratio_bar, write_report
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast

from rayembed.common import logs
from rayembed.common.ray_cluster import connect
from rayembed.contract import Contract
from rayembed.engine.engine import Engine
from rayembed.evaluation.catalogue import Catalogue
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from rayembed.evaluation.results import Candidate
from rayembed.evaluation.run import run
from rayembed.evaluation.units import Unit, UnitQueue, task_units, text_sets
from rayembed.model.base_model import save_untrained

REPOSITORY = Path(__file__).resolve().parents[1]
ACTORS = 2
FORCED_SHARD_TOKENS = 4_000
OVERHEAD_TASKS = ["DocstringRetrieval", "DocstringReranking", "WordNetLexnameClustering", "VaderMovies"]


def random_checkpoint(folder: Path, layers: int, width: int) -> Path:
    """A checkpoint with random weights and a byte tokenizer: the work is real, the scores mean nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {piece: number + 1 for number, piece in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    torch.manual_seed(0)
    backbone = MistralModel(
        MistralConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            sliding_window=None,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    backbone.save_pretrained(folder / "base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(
        folder / "base"
    )
    save_untrained(folder / "base", folder / "checkpoint", Contract(max_length=256))
    return folder / "checkpoint"


def plain(checkpoint: Path, data_dir: Path, tasks: list[str], threads: int) -> dict[str, float]:
    """Main scores by plain mteb in this process."""
    torch.set_num_threads(threads)
    catalogue = Catalogue(data_dir)
    encoder = EngineEncoder(Engine.load(checkpoint, precision="fp32"), "plain")
    references = catalogue.select(tasks=tasks).references
    return {
        reference.name: evaluate_task(encoder, catalogue.load(reference)).get_score()
        for reference in references
    }


def equal(checkpoint: Path, data_dir: Path, scratch: Path, quick: bool) -> Bar:
    """eval_equal."""
    tasks = [OVERHEAD_TASKS[0]] if quick else list(Catalogue(data_dir).select("rayembed-offline").tasks)
    shared = {
        "output": scratch / "equal",
        "data_dir": data_dir,
        "tasks": tasks,
        "actors": ACTORS,
        "precision": "fp32",
    }
    cluster = run(checkpoint, shard_tokens=FORCED_SHARD_TOKENS, keep_embeddings=True, **shared)
    shards = len(list((scratch / "equal").rglob("*.vectors.safetensors")))
    alone = plain(checkpoint, data_dir, tasks, threads=2)
    differences = {task: abs(cluster[task]["trained"] - alone[task]) for task in tasks}
    detail = {"differences": differences, "shards": shards}
    values = list(differences.values())
    return Bar("eval_equal", max(values), 0.0, "lower", (min(values), max(values)), detail)


def makespan(tokens_per_second: float) -> Bar:
    """eval_makespan."""
    catalogue = Catalogue(Path("unused"))
    model = Candidate("model", "0" * 64, Path("unused"))
    units: list[Unit] = []
    for reference in catalogue.select("MTEB(eng, v1)").references:
        units += task_units(model, reference, text_sets(catalogue.load(reference)), max_length=512)
    total, largest = sum(unit.cost for unit in units), max(unit.cost for unit in units)
    shares, hours = {}, {}
    for workers in (1, 8, 64):
        ended = simulated_end(units, workers)
        shares[workers] = max(total / workers, largest) / ended
        hours[workers] = ended / tokens_per_second / 3600
    detail = {
        "share of the ideal": shares,
        "hours": hours,
        "tokens per second of a worker": tokens_per_second,
        "units": len(units),
        "tokens": total,
        "largest unit": largest,
    }
    return Bar(
        "eval_makespan",
        min(shares.values()),
        0.9,
        "higher",
        (min(shares.values()), max(shares.values())),
        detail,
    )


def simulated_end(units: list[Unit], workers: int) -> float:
    """When the last unit ends if workers take units from the real queue, in the unit of their costs."""
    queue, now = UnitQueue(units), 0.0
    running: list[tuple[float, int, Unit]] = []
    while len(queue) or running:
        while len(running) < workers and (unit := queue.take()) is not None:
            heapq.heappush(running, (now + unit.cost, id(unit), unit))
        now, _, done = heapq.heappop(running)
        queue.done(done)
    return now


def overhead(checkpoint: Path, data_dir: Path, scratch: Path, rounds: int) -> Bar:
    """eval_overhead: actors are started and load the model within the time, as the peer loads its."""
    tasks = OVERHEAD_TASKS
    found: list[dict[str, float]] = []

    def on_cluster(number: int) -> None:
        scores = run(
            checkpoint,
            output=scratch / f"overhead-{number}",
            data_dir=data_dir,
            tasks=tasks,
            actors=ACTORS,
            precision="fp32",
        )
        found.append({task: row["trained"] for task, row in scores.items()})

    contestants = {
        "cluster": on_cluster,
        "plain": lambda _: found.append(plain(checkpoint, data_dir, tasks, threads=2)),
    }
    times = interleave(contestants, rounds)
    assert all(abs(scores[task] - found[0][task]) < 1e-3 for scores in found for task in tasks), found
    return ratio_bar(
        "eval_overhead",
        times["cluster"],
        times["plain"],
        goal=1.05,
        better="lower",
        detail={"seconds": times, "tasks": tasks},
    )


def main() -> None:
    """Measure the bars and write them as JSON."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", default="eval_equal,eval_makespan,eval_overhead,eval_resume")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument(
        "--data-dir", type=Path, default=REPOSITORY / "data", help="folder of the built sources"
    )
    parser.add_argument("--layers", type=int, default=4, help="of the random checkpoint")
    parser.add_argument("--width", type=int, default=256, help="of the random checkpoint")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of eval_overhead, after one that is not counted"
    )
    parser.add_argument(
        "--tokens-per-second", type=float, default=20_000, help="of a worker in eval_makespan"
    )
    options = parser.parse_args()
    logs.configure()
    wanted = options.only.split(",")
    bars: list[Bar] = []
    if "eval_makespan" in wanted:
        bars.append(makespan(options.tokens_per_second))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        layers, width = (2, 64) if options.quick else (options.layers, options.width)
        if set(wanted) != {"eval_makespan"}:
            checkpoint = options.checkpoint or random_checkpoint(scratch, layers, width)
        if "eval_resume" in wanted:
            bars.append(resume(checkpoint, options.data_dir, scratch, ACTORS, FORCED_SHARD_TOKENS))
        if {"eval_equal", "eval_overhead"} & set(wanted):
            connect(num_cpus=ACTORS)
        if "eval_overhead" in wanted:
            rounds = 1 if options.quick else options.rounds
            bars.append(overhead(checkpoint, options.data_dir, scratch, rounds))
        if "eval_equal" in wanted:
            bars.append(equal(checkpoint, options.data_dir, scratch, options.quick))
        ray.shutdown()
    write_report(bars, options.json)


if __name__ == "__main__":
    main()
