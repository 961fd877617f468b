"""Attention over texts of one length on the CPU: matrix products against the fused kernel, with backward.

python benchmarks/attention_cpu.py [--quick] --json OUT

Both take the same tensors in turn; values and gradients are compared before anything is timed. The ratios
decide up to which length training uses products.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import torch

from rayembed.model.attention import _attend_fused, _attend_plainly

SHAPES = ((64, 16), (150, 64), (75, 128), (20, 512))  # texts, tokens of each
HEADS, GROUPS, WIDTH = 9, 3, 64  # SmolLM2-135M
SETTINGS = {"scaling": WIDTH**-0.5, "causal": False, "dropout": 0.0}


def forward_and_backward(attend, tensors, weight):
    """Output and gradients of one pass."""
    output = attend(*tensors, **SETTINGS)
    return output, *torch.autograd.grad((output * weight).sum(), tensors)


def seconds(attend, tensors, weight) -> float:
    """Wall time of one pass."""
    started = time.perf_counter()
    forward_and_backward(attend, tensors, weight)
    return time.perf_counter() - started


def compare(texts: int, length: int, dtype: torch.dtype, repeats: int) -> dict:
    """Ratio of the fused kernel's time to that of matrix products; above 1 the products are faster."""
    torch.manual_seed(0)
    shapes = [(texts, heads, length, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    tensors = [torch.randn(shape).to(dtype).requires_grad_(True) for shape in shapes]
    weight = torch.randn(shapes[0]).to(dtype)
    tolerance = 5e-2 if dtype is torch.bfloat16 else 1e-4
    for plain, fused in zip(
        forward_and_backward(_attend_plainly, tensors, weight),
        forward_and_backward(_attend_fused, tensors, weight),
        strict=True,
    ):
        error = (plain - fused).float().norm() / fused.float().norm()
        assert error < tolerance, f"the two disagree by {error:.1e}"
    ratios, fused_times = [], []
    for _ in range(repeats):
        fused_times.append(seconds(_attend_fused, tensors, weight))
        ratios.append(fused_times[-1] / seconds(_attend_plainly, tensors, weight))
    name = str(dtype).removeprefix("torch.")
    return {
        "name": f"attention_backward_{name}_{texts}x{length}",
        "value": round(statistics.median(ratios), 2),
        "goal": 1.0,
        "better": "higher",
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "detail": f"fused over plain, both directions; fused {statistics.median(fused_times) * 1e3:.1f} ms",
    }


def main() -> None:
    """Run all shapes, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--json", type=Path, required=True, help="where to write the bars")
    arguments = parser.parse_args()
    bars = [
        compare(texts, length, dtype, repeats=3 if arguments.quick else 9)
        for dtype in (torch.bfloat16, torch.float32)
        for texts, length in SHAPES
    ]
    machine = {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx_bf16": bool(torch.cpu.get_capabilities().get("amx_bf16")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    for bar in bars:
        print(f"{bar['name']:36} {bar['value']:6.2f}  {bar['spread']}  {bar['detail']}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(
        json.dumps({"date": time.strftime("%Y-%m-%d"), "bars": bars, "machine": machine}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
