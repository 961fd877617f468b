"""What hard negatives do to the trained model: percentage filter against naive top-k and random negatives.

python benchmarks/mining_quality.py [--quick] [--source NAME ...] [--workspace DIR] --json OUT

For each source the same small model is trained on the same rows in the same order with the same seeds; only
the negatives differ. It is judged by nDCG@10 of the dev queries over the documents of the train and dev
splits, all of them or as many as asked for. A cell (source, arm, seed) is stored when it is done, so an
interrupted run continues. The test is Wilcoxon's signed-rank test, paired by dev query, each with its mean
over the seeds.

Training is the platform's own plan, collator and step with torch's AdamW, in this process.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import Bar, arguments, write_report
from scipy.stats import wilcoxon

from rayembed.common.paths import atomic_write, workspace
from rayembed.config.loading import validate_config
from rayembed.config.run import RunConfig
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.store import build_source, read_split
from rayembed.data.stream import local_batches
from rayembed.engine.engine import Engine
from rayembed.mining.config import MiningRecipe
from rayembed.mining.rows import random_documents
from rayembed.mining.run import mine
from rayembed.mining.search import exact_top_k
from rayembed.model.base_model import prepare_base_model
from rayembed.model.checkpoint import LoadedModel
from rayembed.records.schema import PAIR_SCHEMA, document_id
from rayembed.training.model import ModelSpec
from rayembed.training.prepare import resolve_data
from rayembed.training.resources import StepTimer
from rayembed.training.step import contrastive_loss

ARMS = ("percentage", "naive", "random")
INSTRUCTIONS = {
    "python-docstrings": "Find the Python function with this docstring",
    "debian-descriptions": "Find the description of this software package",
}


def mined_sources(source: str, workspace: Path, settings: argparse.Namespace) -> dict[str, Path]:
    """Parquet file of each arm; teacher and candidates are shared."""
    paths = {}
    for arm in ("percentage", "naive"):
        recipe = {
            "output": str(workspace / f"mined-{arm}"),
            "data": {"directory": str(workspace / "data")},
            "models_directory": str(workspace / "models"),
            "teachers": {"minilm": {"kind": "sentence-transformers", "path": "all-minilm-l6-v2"}},
            "sources": [
                {
                    "source": source,
                    "top_k": 50,
                    "negatives_per_query": settings.negatives,
                    "filters": [{"name": arm}],
                }
            ],
            "actors": 0,
        }
        work = workspace / "mined-percentage" / source / "work"
        if arm == "naive" and not (workspace / "mined-naive" / source / "work").exists():
            (workspace / "mined-naive" / source).mkdir(parents=True, exist_ok=True)
            (workspace / "mined-naive" / source / "work").symlink_to(work, target_is_directory=True)
        paths[arm] = mine(MiningRecipe.model_validate(recipe))[0].path
    paths["random"] = with_random_negatives(paths["naive"], workspace / "mined-random" / source, settings)
    return paths


def with_random_negatives(rows: Path, folder: Path, settings: argparse.Namespace) -> Path:
    """The same rows with documents drawn from all others."""
    table = pq.read_table(rows)
    texts = list(dict.fromkeys(text for positives in table["positives"].to_pylist() for text in positives))
    position_of = {text: position for position, text in enumerate(texts)}
    generator = np.random.default_rng(17)
    completed = []
    for row in table.to_pylist():
        own = {position_of[text] for text in row["positives"]}
        drawn = random_documents(len(texts), settings.negatives, own, generator)
        negatives = [texts[position] for position in drawn]
        ids = [document_id(text) for text in [*row["positives"], *negatives]]
        completed.append(row | {"negatives": negatives, "document_ids": ids})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(completed, schema=PAIR_SCHEMA), folder / "train.parquet")
    return folder / "train.parquet"


def configuration(source: str, rows: Path, seed: int, settings: argparse.Namespace) -> RunConfig:
    """A run of one stage on the rows of one arm."""
    return validate_config(
        {
            "name": "mining-quality",
            "seed": seed,
            "base_model": "smollm2-135m",
            "contract": {"max_length": 96},
            "model": {"pooling": {"type": "mean"}},
            "data": {
                "directory": str(rows.parent / "built"),
                "sources": {"mined": {"path": str(rows), "kind": "pairs"}},
                "contamination": {"against": []},
            },
            "stages": [
                {
                    "name": "retrieval",
                    "steps": settings.steps,
                    "batch_size": settings.batch,
                    "learning_rate": settings.rate,
                    "warmup_steps": settings.steps // 10,
                    "temperature": 0.05,
                    "blend": [
                        {
                            "source": "mined",
                            "weight": 1,
                            "instruction": INSTRUCTIONS[source],
                            "in_batch_negatives": not settings.hard_only,
                            "negatives_per_query": settings.negatives,
                        }
                    ],
                }
            ],
        },
        origin="mining_quality.py",
    )


def trained(config: RunConfig, base: Path, folder: Path) -> LoadedModel:
    """Train one cell in this process."""
    stage = config.stages[0]
    stream = resolve_data(config)[0].prepare(folder, str(base))
    model = ModelSpec.of(config, base).build(torch.float32).train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=stage.learning_rate, weight_decay=stage.weight_decay)
    warmup = max(1, stage.warmup_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (stage.steps - step) / (stage.steps - warmup + 1))
    )
    for batch in local_batches(stream, start=0, stop=stage.steps):
        torch.manual_seed(config.seed * 1_000_003 + batch.step)
        contrastive_loss(model(batch.packed), batch, stage, StepTimer()).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, stage.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return LoadedModel(model, load_tokenizer(base), config.contract, "mining-quality")


def dev_scores(model: LoadedModel, source: str, data: Path, settings: argparse.Namespace) -> np.ndarray:
    """nDCG@10 of the dev queries over their documents and those of the train split."""
    engine = Engine(model, name="mining-quality")
    dev = read_split(data, source, "dev").slice(0, settings.dev_rows).to_pylist()
    train = read_split(data, source, "train")["positives"].slice(0, settings.train_documents).to_pylist()
    documents = list(dict.fromkeys(text for row in [*(r["positives"] for r in dev), *train] for text in row))
    position_of = {text: position for position, text in enumerate(documents)}
    corpus = engine.encode(documents).vectors
    queries = engine.encode([row["query"] for row in dev], instruction=INSTRUCTIONS[source]).vectors
    _, found = exact_top_k(queries, [corpus], 10)
    discounts = 1 / np.log2(np.arange(2, 12))
    scores = []
    for row, ranked in zip(dev, found, strict=True):
        right = {position_of[text] for text in row["positives"]}
        gains = np.array([position in right for position in ranked.tolist()])
        scores.append(float((gains * discounts).sum() / discounts[: min(10, len(right))].sum()))
    return np.array(scores)


def cell(source: str, arm: str, rows: Path, seed: int, settings: argparse.Namespace) -> np.ndarray:
    """Scores of one cell, stored or computed."""
    workspace = settings.workspace
    shape = f"{settings.layers}l-{settings.steps}s-{settings.batch}b-{settings.negatives}n-{settings.rate:g}"
    shape += "-hard-only" * settings.hard_only + "-quick" * settings.quick
    if settings.dev_rows or settings.train_documents:
        shape += f"-{settings.dev_rows}-of-{settings.train_documents}"
    folder = workspace / "cells" / shape / source / f"{arm}-{seed}"
    stored = folder / "scores.json"
    if stored.is_file():
        return np.array(json.loads(stored.read_text())["ndcg"])
    base = prepare_base_model("smollm2-135m", workspace / "models", layers=settings.layers)
    started = time.monotonic()
    model = trained(configuration(source, rows, seed, settings), Path(base), folder)
    scores = dev_scores(model, source, workspace / "data", settings)
    seconds = round(time.monotonic() - started, 1)
    atomic_write(stored, json.dumps({"ndcg": scores.tolist(), "seconds": seconds}) + "\n")
    print(f"{source} {arm} seed {seed}: nDCG@10 {scores.mean():.4f}, {seconds:.0f} s", flush=True)
    return scores


def compare(source: str, settings: argparse.Namespace) -> tuple[list[str], list[Bar]]:
    """Table lines and bars of one source."""
    build_source(source, settings.workspace / "data")
    paths = mined_sources(source, settings.workspace, settings)
    scores = {
        arm: np.stack([cell(source, arm, paths[arm], seed, settings) for seed in settings.seeds])
        for arm in ARMS
    }  # arm -> [seeds, queries]
    lines = [
        f"## {source}",
        "",
        "| negatives | nDCG@10, mean over seeds | each seed | percentage is better by | p (Wilcoxon) |",
        "|---|---|---|---|---|",
    ]
    bars = []
    for arm in ARMS:
        by_seed = ", ".join(f"{score:.4f}" for score in scores[arm].mean(axis=1))
        difference, chance = "", ""
        if arm != "percentage":
            gains = scores["percentage"].mean(axis=0) - scores[arm].mean(axis=0)
            chance_of_none = wilcoxon(gains).pvalue if gains.any() else 1.0
            difference, chance = f"{gains.mean():+.4f}", f"{chance_of_none:.3g}"
            each = (scores["percentage"] - scores[arm]).mean(axis=1)
            bars.append(
                Bar(
                    f"mining_quality_{source}_over_{arm}",
                    float(gains.mean()),
                    0.0,
                    "higher",
                    (float(each.min()), float(each.max())),
                    {
                        "unit": "difference of nDCG@10",
                        "dev_queries": gains.size,
                        "seeds": len(each),
                        "p": f"{chance_of_none:.3g} (Wilcoxon signed-rank test)",
                    },
                )
            )
        lines.append(f"| {arm} | {scores[arm].mean():.4f} | {by_seed} | {difference} | {chance} |")
    return [*lines, ""], bars


def main() -> None:
    """Run all cells that are not stored, print the tables, write JSON and Markdown."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--workspace", type=Path, default=workspace(), help="folder of data, models and cells"
    )
    parser.add_argument("--source", nargs="+", default=["python-docstrings"], choices=sorted(INSTRUCTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--layers", type=int, default=2, help="of the base model")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=24, help="rows of a step")
    parser.add_argument("--negatives", type=int, default=2, help="hard negatives of a row")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--dev-rows", type=int, help="of the judgement: at most so many dev rows")
    parser.add_argument("--train-documents", type=int, help="and so many documents of the train split")
    parser.add_argument("--hard-only", action="store_true", help="no in-batch negatives")
    settings = parser.parse_args()
    settings.workspace = settings.workspace.resolve()
    if settings.quick:
        settings.steps, settings.batch, settings.seeds = 3, 8, settings.seeds[:2]
        settings.dev_rows, settings.train_documents = 40, 160
    tables, bars = [], []
    for source in settings.source:
        lines, source_bars = compare(source, settings)
        tables += lines
        bars += source_bars
    shape = (
        f"{settings.layers} layers of SmolLM2-135M with LoRA and mean pooling, {settings.steps} steps of "
        f"{settings.batch} rows, {settings.negatives} negatives, in-batch negatives "
        f"{'off' if settings.hard_only else 'on'}, teacher all-MiniLM-L6-v2, judged by "
        f"{settings.dev_rows or 'all'} dev rows over their documents and those of "
        f"{settings.train_documents or 'all'} rows of train; {time.strftime('%Y-%m-%d')}, "
        f"{os.cpu_count()} CPUs, torch {torch.__version__}"
    )
    text = "\n".join(["# Negatives and the trained model", "", shape, "", *tables])
    print(text)
    for bar in bars:
        bar.detail["setting"] = shape
    write_report(bars, settings.json)
    if settings.json:
        atomic_write(settings.json.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
