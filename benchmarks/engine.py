"""The engine against `SentenceTransformer.encode` and against bare forward passes.

python benchmarks/engine.py [--quick] [--layers N] [--precision bf16|fp32] --json OUT

Where OpenVINO and ONNX Runtime are installed, they are peers too, on padded batches sorted by length.

The model is SmolLM2-135M without its causal mask, mean-pooled. sentence-transformers gets the same weights in
its own `Transformer`, `Pooling` and `Normalize` modules, in the same number format, with the same threads and
the batch size that serves it best. Vectors are compared in fp32 before anything is timed. Texts are distinct,
and each round embeds other ones, so that nobody profits from sizes seen before.

engine_natural   one list of docstrings, code and glosses
engine_equal     texts of 64 tokens each
engine_skewed    the natural list, unsorted, in calls of 32 texts, the peer's own batch size
engine_single    one text of 12 tokens: time over that of the best peer
engine_*_best    natural, equal and skewed against the best of all peers
engine_limit     forward passes over packed batches, as a share of the engine's whole time
engine_memory    peak memory of a process that embeds the natural list, ours over the peer's
"""

import argparse
import multiprocessing
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import numpy as np
import torch
from harness import Bar, arguments, interleave, ratio_bar, write_report
from inputs import natural_texts
from peers.runtimes import load_runtimes

from rayembed.common.paths import workspace
from rayembed.contract import Contract
from rayembed.engine.engine import Engine
from rayembed.model.base_model import prepare_base_model, save_untrained
from rayembed.training.resources import peak_memory as process_memory

Encode = Callable[[Sequence[str]], Any]

PEER_BATCH_SIZES = (16, 32, 64)
CALL = 32  # texts of a call in engine_skewed, and the peer's own batch size
EQUAL_LENGTH = 64
SINGLE_LENGTH, SINGLE_CALLS = 12, 20
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def equal_texts(engine: Engine, texts: Sequence[str], count: int) -> list[str]:
    """Texts of exactly `EQUAL_LENGTH` tokens, cut from the natural ones."""
    stream = [token for ids in engine.tokenize(texts).input_ids for token in ids]
    starts = range(0, len(stream) - EQUAL_LENGTH, EQUAL_LENGTH // 2)
    cut = [engine.tokenizer.decode(stream[start : start + EQUAL_LENGTH]) for start in starts]
    lengths = engine.tokenize(cut).lengths
    found = [text for text, length in zip(cut, lengths, strict=True) if length == EQUAL_LENGTH]
    if len(found) < count:
        raise SystemExit(f"only {len(found)} texts of {EQUAL_LENGTH} tokens could be made, not {count}")
    return found[:count]


def load_peer(checkpoint: Path, precision: str) -> Any:
    """The same weights in sentence-transformers' own modules."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    # With a chat template sentence-transformers would wrap each text in a conversation.
    without_template = shutil.ignore_patterns("chat_template*")
    shutil.copytree(
        checkpoint / "tokenizer", checkpoint / "backbone", ignore=without_template, dirs_exist_ok=True
    )
    transformer = Transformer(
        str(checkpoint / "backbone"),
        max_seq_length=512,
        model_kwargs={"dtype": DTYPES[precision], "attn_implementation": "sdpa"},
    )
    for layer in transformer.auto_model.layers:
        # The configuration's `is_causal` decides the mask; where a batch needs none, SDPA asks the module.
        layer.self_attn.is_causal = False
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")


def peer_encode(peer: Any, texts: Sequence[str], batch_size: int = CALL) -> np.ndarray:
    """Vectors of the peer as fp32."""
    vectors = peer.encode(list(texts), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
    return vectors.float().numpy()


def by_round(encode: Encode, texts: Sequence[str], size: int) -> Callable[[int], Any]:
    """Embed the texts of a round, `size` of them."""
    return lambda turn: encode(texts[turn * size : (turn + 1) * size])


def by_call(encode: Encode, texts: Sequence[str], size: int) -> Callable[[int], None]:
    """The same, in calls of `CALL` texts as they arrive."""

    def run(turn: int) -> None:
        for start in range(turn * size, (turn + 1) * size, CALL):
            encode(texts[start : min(start + CALL, (turn + 1) * size)])

    return run


def forward_only(engine: Engine, texts: Sequence[str], size: int, rounds: int) -> Callable[[int], None]:
    """The engine's forward passes alone: tokenised and packed beforehand."""
    packed = [
        list(engine.packed_batches(engine.tokenize(texts[turn * size : (turn + 1) * size])))
        for turn in range(rounds + 1)
    ]

    def run(turn: int) -> None:
        for _, batch in packed[turn]:
            engine.forward(batch)

    return run


def best(times: dict[str, list[float]], names: Sequence[str]) -> list[float]:
    """Seconds of the fastest of some contestants."""
    return min((times[name] for name in names), key=statistics.median)


def repeated(encode: Encode, texts: Sequence[str]) -> Callable[[int], None]:
    """Embed one text at a time, so many in a round that its time can be measured."""

    def run(turn: int) -> None:
        for text in texts:
            encode([text])

    return run


def check_agreement(checkpoint: Path, texts: Sequence[str]) -> float:
    """Smallest cosine between the two in fp32; ends the program when they do not compute the same."""
    ours = Engine.load(checkpoint, precision="fp32").encode(texts).vectors
    theirs = peer_encode(load_peer(checkpoint, "fp32"), texts)
    smallest = float((ours * theirs).sum(axis=1).min())
    if smallest < 1 - 1e-5:
        raise SystemExit(f"the two disagree: smallest cosine {smallest:.6f} in fp32")
    return smallest


def peak_memory(which: str, checkpoint: Path, precision: str, texts: Sequence[str]) -> float:
    """Peak resident memory, in MB, of a process that loads the model and embeds the texts."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (which, checkpoint, precision, list(texts)))


def _peak_memory(which: str, checkpoint: Path, precision: Any, texts: list[str]) -> float:
    if which == "ours":
        Engine.load(checkpoint, precision=precision).encode(texts)
    else:
        peer_encode(load_peer(checkpoint, precision), texts)
    return process_memory(torch.device("cpu")) / 2**20


def best_batch_size(peer: Any, texts: Sequence[str]) -> int:
    """Batch size with which the peer is fastest."""
    contestants = {
        str(size): by_round(partial(peer_encode, peer, batch_size=size), texts, len(texts) // 3)
        for size in PEER_BATCH_SIZES
    }
    times = interleave(contestants, 2)
    return int(min(times, key=lambda size: sum(times[size])))


def measure(options: argparse.Namespace, checkpoint: Path) -> list[Bar]:
    """All bars of one number format."""
    rounds, size = (2, 90) if options.quick else (options.rounds, options.texts)
    texts = natural_texts(size * (rounds + 1))
    cosine = check_agreement(checkpoint, texts[:60])
    engine = Engine.load(
        checkpoint, precision=options.precision, fp32_layers=options.fp32_layers, compiled=options.compiled
    )
    peer = load_peer(checkpoint, options.precision)
    batch_size = best_batch_size(peer, texts[:size])
    peers = partial(peer_encode, peer, batch_size=batch_size)
    runtimes = {
        name: runtime.encode
        for name, runtime in load_runtimes(
            checkpoint / "backbone", engine.tokenizer, options.precision, checkpoint.parent
        ).items()
    }
    for name, encode in runtimes.items():
        cosines = (encode(texts[:20]) * engine.encode(texts[:20]).vectors).sum(axis=1)
        assert cosines.min() > 1 - 1e-3, f"{name} disagrees: smallest cosine {cosines.min()}"
    setting = {
        "precision": options.precision,
        "fp32_layers": options.fp32_layers,
        "compiled": options.compiled,
        "layers": options.layers,
        "texts": size,
        "tokens": sum(engine.tokenize(texts[:size]).lengths),
        "threads": torch.get_num_threads(),
        "peer": "SentenceTransformer.encode",
        "peer_batch_size": batch_size,
        "smallest_cosine_fp32": cosine,
    }

    natural = interleave(
        {
            "ours": by_round(engine.encode, texts, size),
            "peer": by_round(peers, texts, size),
            "peer_in_calls": by_call(partial(peer_encode, peer), texts, size),
            "peer_in_calls_best": by_call(peers, texts, size),
            "ours_in_calls": by_call(engine.encode, texts, size),
            "forward_only": forward_only(engine, texts, size, rounds),
        }
        | {name: by_round(encode, texts, size) for name, encode in runtimes.items()}
        | {f"{name}_in_calls": by_call(encode, texts, size) for name, encode in runtimes.items()},
        rounds,
    )
    equal = equal_texts(engine, texts, size // 4 * (rounds + 1))
    equal_times = interleave(
        {
            name: by_round(encode, equal, size // 4)
            for name, encode in {"ours": engine.encode, "peer": peers, **runtimes}.items()
        },
        rounds,
    )
    single = [
        engine.tokenizer.decode(engine.tokenize([text]).input_ids[0][:SINGLE_LENGTH])
        for text in texts[:SINGLE_CALLS]
    ]
    single_times = interleave(
        {
            name: repeated(encode, single)
            for name, encode in {"ours": engine.encode, "peer": peers, **runtimes}.items()
        },
        rounds,
    )
    memory = {
        name: peak_memory(name, checkpoint, options.precision, texts[:size]) for name in ("ours", "peer")
    }
    share = memory["ours"] / memory["peer"]
    every = ["peer", *runtimes]
    in_calls = ["peer_in_calls", "peer_in_calls_best", *(f"{name}_in_calls" for name in runtimes)]
    against_all = [
        ratio_bar(
            "engine_single", single_times["ours"], best(single_times, every), goal=1.0, better="lower",
            detail=setting | {"calls": len(single), "seconds": single_times},
        ),
        ratio_bar("engine_natural_best", best(natural, every), natural["ours"], goal=1.0, detail=setting),
        ratio_bar(
            "engine_equal_best", best(equal_times, every), equal_times["ours"], goal=1.0, detail=setting
        ),
        ratio_bar(
            "engine_skewed_best", best(natural, in_calls), natural["ours_in_calls"], goal=3.0, detail=setting
        ),
    ]  # fmt: skip
    detail = setting | {"seconds": natural}
    return [
        *against_all,
        ratio_bar("engine_natural", natural["peer"], natural["ours"], goal=1.15, detail=detail),
        ratio_bar(
            "engine_equal",
            equal_times["peer"],
            equal_times["ours"],
            goal=1.0,
            detail=setting | {"tokens": EQUAL_LENGTH * (size // 4), "seconds": equal_times},
        ),
        ratio_bar(
            "engine_skewed", natural["peer_in_calls"], natural["ours_in_calls"], goal=4.0, detail=detail
        ),
        ratio_bar("engine_limit", natural["forward_only"], natural["ours"], goal=0.95, detail=detail),
        Bar("engine_memory", share, 1.0, "lower", (share, share), setting | {"peak_mb": memory}),
    ]


def main() -> None:
    """Build the model, run the bars and print them."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, help="first layers of SmolLM2-135M to keep: 30, with --quick 4")
    parser.add_argument("--precision", choices=sorted(DTYPES), default="bf16")
    parser.add_argument(
        "--fp32-layers", type=int, default=0, help="of the engine; the peer has no such thing"
    )
    parser.add_argument("--compiled", action="store_true", help="the engine's own; the peer runs as it does")
    parser.add_argument("--texts", type=int, default=300, help="texts of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.layers = options.layers or (4 if options.quick else 30)
    base = prepare_base_model("smollm2-135m", workspace() / "models", layers=options.layers)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model"
        save_untrained(base, checkpoint, Contract(max_length=512, append_eos=False))
        write_report(measure(options, checkpoint), options.json)


if __name__ == "__main__":
    main()
