"""Does memory stay flat when the batch grows eightfold under a token budget?

python benchmarks/gradcache_memory.py [--quick] --json OUT

Each measurement is a process of its own that takes one training step of a small random model on the CPU and
reports the largest resident memory during the step over that before it (VmHWM of Linux, reset before the
step). With and without chunks; losses of the two are compared first.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import torch
from harness import Bar, Unwrapped, arguments, write_report
from transformers import MistralConfig, MistralModel

from rayembed.contract.packing import pack_ids
from rayembed.model.backbone import prepare_backbone
from rayembed.model.configuration import LoraSettings, ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.lora import attach_lora
from rayembed.model.pooling import MeanPoolingConfig
from rayembed.training.resources import StepTimer
from rayembed.training.step import StepOutput, encode_and_backward

TOKENS = 64  # of a text
BUDGET = 2048
ROWS = 32  # of the smallest batch, two chunks; a row is a query and a document
GROWTH = (1, 2, 4, 8)
MEBIBYTE = 2**20


def small_embedder() -> EmbeddingModel:
    """Four layers of width 128 with adapters."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, sliding_window=None,
    )  # fmt: skip
    backbone = attach_lora(prepare_backbone(MistralModel(config), "bidirectional"), LoraSettings(dropout=0.0))
    return EmbeddingModel(backbone, ModelConfig(pooling=MeanPoolingConfig())).train()


def contrast(vectors_ND: torch.Tensor) -> StepOutput:
    """Cross entropy of each query's document among all, the plainest loss that couples a whole batch."""
    query_QD, document_QD = vectors_ND.chunk(2)
    target_Q = torch.arange(len(query_QD))
    return StepOutput(torch.nn.functional.cross_entropy(query_QD @ document_QD.T / 0.05, target_Q), {}, {})


def status(key: str) -> int:
    """A memory value of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def measure_one(rows: int, tokens_per_chunk: int | None) -> dict[str, float]:
    """One step in this process."""
    torch.set_num_threads(1)
    engine = Unwrapped(small_embedder())
    warm_up = torch.randint(1000, (2, 8)).tolist()
    encode_and_backward(engine, pack_ids(warm_up, [0, 0]), contrast, StepTimer())
    generator = torch.Generator().manual_seed(rows)
    texts = torch.randint(1000, (2 * rows, TOKENS), generator=generator).tolist()
    packed = pack_ids(texts, [0] * len(texts))
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    output = encode_and_backward(engine, packed, contrast, StepTimer(), tokens_per_chunk)
    return {"loss": float(output.loss), "bytes": status("VmHWM") - before}


def measure(rows: int, tokens_per_chunk: int | None) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--one", str(rows), str(tokens_per_chunk or 0)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    """Measure, compare, print and write."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, type=int, metavar=("ROWS", "BUDGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        rows, budget = options.one
        print(json.dumps(measure_one(rows, budget or None)))
        return
    growth = (GROWTH[0], GROWTH[-1]) if options.quick else GROWTH
    table = []
    for factor in growth:
        chunked, plain = measure(ROWS * factor, BUDGET), measure(ROWS * factor, None)
        assert abs(chunked["loss"] - plain["loss"]) < 1e-4, (chunked, plain)
        table.append((ROWS * factor, chunked["bytes"] / MEBIBYTE, plain["bytes"] / MEBIBYTE))
        print("rows {:5d}: {:7.0f} MiB in chunks, {:7.0f} MiB at once".format(*table[-1]), flush=True)
    detail = {str(rows): {"chunks_mib": round(a, 1), "at_once_mib": round(b, 1)} for rows, a, b in table}
    growth_of_memory = table[-1][1] / table[0][1]
    setting = {"rows": detail, "tokens_per_chunk": BUDGET, "tokens_per_row": 2 * TOKENS}
    spread = (growth_of_memory, growth_of_memory)
    write_report([Bar("gradcache_memory", growth_of_memory, 1.1, "lower", spread, setting)], options.json)


if __name__ == "__main__":
    main()
