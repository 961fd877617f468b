"""What cheaper number formats cost: vectors and search results against fp32.

python benchmarks/precision.py [--quick] [--checkpoint FOLDER] --json OUT

Without a checkpoint the model is the first 12 layers of SmolLM2-135M, untrained and mean-pooled, whose huge
activations make it the hardest case there is. Queries are docstrings, documents their functions.

engine_bf16        smallest cosine of bf16 and fp32 vectors, first three layers in fp32
engine_bf16_plain  the same with all layers in bf16
engine_int8        the same with int8 weights; left out where torchao is not installed
engine_ndcg        largest change of nDCG@10 by any of them
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import numpy as np
from harness import Bar, arguments, write_report

from rayembed.common.paths import workspace
from rayembed.contract import Contract
from rayembed.data.store import build_source, read_split
from rayembed.engine.engine import Engine
from rayembed.model.base_model import prepare_base_model, save_untrained

SETTINGS = {
    "engine_bf16": {"precision": "bf16", "fp32_layers": 3},
    "engine_bf16_plain": {"precision": "bf16"},
    "engine_int8": {"precision": "bf16", "quantization": "int8"},
    "engine_fp8": {"precision": "bf16", "quantization": "fp8"},
}
GOALS = {"engine_bf16": 0.999, "engine_bf16_plain": 0.998, "engine_int8": 0.95, "engine_fp8": 0.95}


def ndcg_at_10(queries: np.ndarray, documents: np.ndarray) -> float:
    """Mean over the queries, where document i is the only right answer to query i."""
    scores = queries @ documents.T
    ranks = (scores > np.diagonal(scores)[:, None]).sum(axis=1)
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())


def measure(checkpoint: Path, pairs: int) -> list[Bar]:
    """Compare each setting with fp32 on `pairs` docstrings and their functions."""
    data = workspace() / "data"
    build_source("python-docstrings", data)
    table = read_split(data, "python-docstrings", "test").slice(0, pairs)
    texts = [*table["query"].to_pylist(), *(row[0] for row in table["positives"].to_pylist())]
    reference = Engine.load(checkpoint, precision="fp32").encode(texts).vectors
    expected = ndcg_at_10(reference[:pairs], reference[pairs:])
    bars, scores = [], {}
    for name, options in SETTINGS.items():
        if "quantization" in options and not importlib.util.find_spec("torchao"):
            print(f"without {name}: torchao is not installed")
            continue
        vectors = Engine.load(checkpoint, **options).encode(texts).vectors
        cosines = (vectors * reference).sum(axis=1)
        scores[name] = ndcg_at_10(vectors[:pairs], vectors[pairs:])
        detail = options | {
            "texts": len(texts),
            "mean": float(cosines.mean()),
            "first_percentile": float(np.quantile(cosines, 0.01)),
            "ndcg_at_10": scores[name],
        }
        spread = (float(cosines.min()), float(cosines.max()))
        bars.append(Bar(name, spread[0], GOALS[name], "higher", spread, detail))
    changes = [abs(score - expected) for score in scores.values()]
    detail = {"fp32": expected, **scores}
    bars.append(Bar("engine_ndcg", max(changes), 0.005, "lower", (min(changes), max(changes)), detail))
    return bars


def main() -> None:
    """Measure a checkpoint, or the untrained model."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="model to measure in place of the untrained one")
    options = parser.parse_args()
    pairs = 60 if options.quick else 300
    if options.checkpoint:
        write_report(measure(options.checkpoint, pairs), options.json)
        return
    base = prepare_base_model("smollm2-135m", workspace() / "models", layers=12)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model"
        save_untrained(base, checkpoint, Contract(max_length=512))
        write_report(measure(checkpoint, pairs), options.json)


if __name__ == "__main__":
    main()
