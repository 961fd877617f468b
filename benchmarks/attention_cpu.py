"""Attention over texts of one length on the CPU: matrix products against the fused kernel, with backward.

python benchmarks/attention_cpu.py [--quick] --json OUT

Both take the same tensors in turn; values and gradients are compared before anything is timed. The ratios
decide up to which length training uses products.
"""

import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import torch
from harness import Bar, arguments, ratio_bar, seconds, write_report

from rayembed.model.attention import _attend_fused, _attend_plainly

SHAPES = ((64, 16), (150, 64), (75, 128), (20, 512))  # texts, tokens of each
HEADS, GROUPS, WIDTH = 9, 3, 64  # SmolLM2-135M
SETTINGS = {"scaling": WIDTH**-0.5, "causal": False, "dropout": 0.0}


def forward_and_backward(attend, tensors, weight):
    """Output and gradients of one pass."""
    output = attend(*tensors, **SETTINGS)
    return output, *torch.autograd.grad((output * weight).sum(), tensors)


def compare(texts: int, length: int, dtype: torch.dtype, repeats: int) -> Bar:
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
    fused = partial(forward_and_backward, _attend_fused, tensors, weight)
    plain = partial(forward_and_backward, _attend_plainly, tensors, weight)
    times = [(seconds(fused), seconds(plain)) for _ in range(repeats)]
    fused_times, plain_times = zip(*times, strict=True)
    name = str(dtype).removeprefix("torch.")
    detail = {"ratio": "fused over plain, both directions", "fused_ms": statistics.median(fused_times) * 1e3}
    bar = f"attention_backward_{name}_{texts}x{length}"
    return ratio_bar(bar, fused_times, plain_times, goal=1.0, detail=detail)


def main() -> None:
    """Run all shapes, print a table, write JSON."""
    options = arguments(__doc__.splitlines()[0]).parse_args()
    bars = [
        compare(texts, length, dtype, repeats=3 if options.quick else 9)
        for dtype in (torch.bfloat16, torch.float32)
        for texts, length in SHAPES
    ]
    write_report(bars, options.json)


if __name__ == "__main__":
    main()
