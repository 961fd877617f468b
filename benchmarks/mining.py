"""Mining and its peers: exact search against faiss flat, encoding against the bare inference engine, and how
often a search reads the corpus.

python benchmarks/mining.py [--quick] --json OUT

Each round runs both sides in turn, in alternating order, on the same vectors or texts and the same cores.
Results are compared before a time counts. faiss comes with the development packages; the encoder is the
4-layer cut of the packaged base model, which is built into --workspace when it is not there.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import faiss
import numpy as np
import pyarrow as pa
from harness import Bar, arguments, ratio_bar, write_report

from rayembed.contract import Contract
from rayembed.data.store import build_source, read_split
from rayembed.engine.engine import Engine
from rayembed.mining import finding
from rayembed.mining.candidates import SearchJob, read_candidates
from rayembed.mining.config import CheckpointTeacher
from rayembed.mining.excluded import Excluded
from rayembed.mining.search import exact_top_k
from rayembed.mining.teachers import SHARD_ROWS, EncodeShard, VectorJob, write_texts
from rayembed.model.base_model import prepare_base_model, save_untrained

WIDTH, TOP = 384, 100


def unit_vectors(generator: np.random.Generator, rows: int) -> np.ndarray:
    """Random directions, fp32."""
    vectors = generator.standard_normal((rows, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, and its result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def search_bar(documents: int, queries: int, slices: int) -> Bar:
    """Our time over faiss's for the same exact top 100.

    Both sides search the queries in slices, in turn, so that a disturbance of the machine meets both.
    """
    generator = np.random.default_rng(0)
    corpus, asked = unit_vectors(generator, documents), unit_vectors(generator, queries)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(corpus)
    index.search(asked[:64], TOP)
    exact_top_k(asked[:64], [corpus[:8192]], TOP)
    ours, others, agreeing = [], [], []
    for turn, part in enumerate(np.array_split(asked, slices)):
        sides = {"ours": partial(exact_top_k, part, [corpus], TOP), "faiss": partial(index.search, part, TOP)}
        measured = {name: timed(sides[name]) for name in sorted(sides, reverse=bool(turn % 2))}
        (our_time, (scores, positions)), (other_time, (other_scores, other_positions)) = (
            measured["ours"],
            measured["faiss"],
        )
        np.testing.assert_allclose(scores, other_scores, atol=1e-5)
        agreeing.append(float((positions == other_positions).mean()))
        # Scores that are equal up to rounding may change places.
        assert agreeing[-1] > 0.999, f"only {agreeing[-1]:.4%} of the positions agree"
        ours.append(our_time)
        others.append(other_time)
    ratios = [mine / other for mine, other in zip(ours, others, strict=True)]
    detail = {
        "peer": f"faiss {faiss.__version__} IndexFlatIP, {faiss.omp_get_max_threads()} threads",
        "work": f"{documents:,} x {WIDTH}, {queries:,} queries in {slices} slices, top {TOP}",
        "seconds": {"ours": sum(ours), "faiss": sum(others)},
        "equal_positions": float(np.mean(agreeing)),
    }
    whole = sum(ours) / sum(others)
    return Bar("mining_search", whole, 1.1, "lower", (min(ratios), max(ratios)), detail)


def stream_bar(documents: int, queries: int) -> Bar:
    """Bytes of document vectors that the miner's search reads, over those that there are.

    Counted where shards enter the search, because the system may answer a second reading from memory.
    """
    generator, read = np.random.default_rng(0), []

    def counting(query_QD: Any, shards: Any, *rest: Any, **options: Any) -> Any:
        read.extend(shard.nbytes for shard in shards)
        return exact_top_k(query_QD, shards, *rest, **options)

    with tempfile.TemporaryDirectory() as scratch:
        folder, sides = Path(scratch), {}
        for side, rows in (("query", queries), ("document", documents)):
            texts = write_texts(pa.array(map(str, range(rows))), folder / f"{side}.parquet")
            job = sides[side] = VectorJob(texts, folder / side, side, None)
            job.folder.mkdir()
            for path, start in zip(job.shards, range(0, rows, SHARD_ROWS), strict=True):
                np.save(path, unit_vectors(generator, min(SHARD_ROWS, rows - start)))
        none = np.empty(0, np.int64)
        collection = SimpleNamespace(positives=(none, none), excluded=Excluded(none, none))
        pairs = finding.write_pairs(collection, folder / "pairs.npz")
        texts = sides["query"].texts, sides["document"].texts
        search = SearchJob(*texts, sides["query"], sides["document"], pairs, TOP, folder)
        with mock.patch.object(finding, "exact_top_k", counting):
            seconds, _ = timed(lambda: finding.find_candidates(search, actors=0, title="search"))
        assert len(next(read_candidates(search)).documents) == TOP
    share = sum(read) / (4 * WIDTH * documents)
    detail = {"work": f"{documents:,} x {WIDTH}, {queries:,} queries, top {TOP}", "seconds": seconds}
    return Bar("mining_stream", share, 1.2, "lower", (share, share), detail)


def encode_bar(workspace: Path, texts: int, rounds: int) -> Bar:
    """Texts a second of the miner's worker over those of the bare engine."""
    build_source("python-docstrings", workspace / "data")
    rows = read_split(workspace / "data", "python-docstrings", "train")
    documents = list(dict.fromkeys(text for row in rows["positives"].to_pylist() for text in row))[:texts]
    checkpoint = workspace / "models" / "mining-benchmark"
    if not checkpoint.is_dir():
        base = prepare_base_model("smollm2-135m", workspace / "models", layers=4)
        save_untrained(base, checkpoint, Contract(max_length=96))
    teacher = CheckpointTeacher(kind="checkpoint", path=str(checkpoint))
    engine = Engine.load(checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        stored = write_texts(pa.array(documents), Path(scratch) / "documents.parquet")
        job = VectorJob.of(stored, Path(scratch), teacher, "document", None)
        worker = EncodeShard(teacher, [job])
        bare, mined = [], []
        for turn in range(rounds + 1):
            sides = {
                "engine": lambda: engine.encode(documents).vectors,
                "miner": lambda: [worker({"job": 0, "shard": at}) for at in range(len(job.shards))],
            }
            measured = {name: timed(sides[name]) for name in sorted(sides, reverse=bool(turn % 2))}
            difference = np.abs(np.concatenate(job.open()) - measured["engine"][1]).max()
            assert difference < 1e-5, f"the vectors differ by up to {difference:.1e}"
            if turn:  # the first round warms up
                bare.append(measured["engine"][0])
                mined.append(measured["miner"][0])
    return ratio_bar(
        "mining_encode",
        bare,
        mined,
        goal=0.9,
        detail={"functions": len(documents), "texts_per_second": len(documents) / statistics.median(mined)},
    )


def main() -> None:
    """Run the bars, print them, write JSON."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=Path(), help="folder of data and models")
    parser.add_argument("--only", choices=["search", "stream", "encode"], help="one of the bars")
    options = parser.parse_args()
    bars = []
    if options.only in (None, "search"):
        size = (100_000, 5_000, 4) if options.quick else (1_000_000, 10_000, 4)
        bars.append(search_bar(*size))
    if options.only in (None, "stream"):
        bars.append(stream_bar(*((50_000, 20_000) if options.quick else (1_000_000, 100_000))))
    if options.only in (None, "encode"):
        texts, rounds = (256, 3) if options.quick else (768, 5)
        bars.append(encode_bar(options.workspace.resolve(), texts, rounds))
    write_report(bars, options.json)


if __name__ == "__main__":
    main()
