"""What only a GPU can show, in a quarter of an hour, without Ray and without a network.

python benchmarks/gpu/run.py --output FOLDER [--only NAME ...] [--skip NAME ...] [--tiny] [--device cpu]

Every check runs in a process of its own with a budget of time, and writes FOLDER/NAME.json after each
measurement: a check that fails, hangs or runs out of memory leaves its results and the next check alone.
FOLDER/bars.json has the figures with goals, from GPUs only. `--tiny --device cpu` is the dry run.
"""

import argparse
import json
import multiprocessing
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "platform"))

import torch
from checks import CHECKS
from fitting import fit_varlen
from harness import Bar, machine, write_report
from torch.nn.attention import varlen
from workload import NV_EMBED, TINY, Workload

GOALS = {
    "gpu_training_pass": 14_100,
    "gpu_training": 14_100,
    "gpu_inference": 40_000,
    "gpu_inference_fp8": 60_000,
}
SHORT_TEXTS_GOAL = 0.9  # of the speed at texts of all lengths


def run_check(name: str, target: Path, device: str, tiny: bool) -> None:
    """Run one check in this process and write all that it measures."""
    started = time.perf_counter()
    if device == "cpu":
        torch.set_num_threads(1)
    report: dict[str, Any] = {"check": name, "status": "running", "command": shlex.join(sys.argv), "rows": []}

    def write(status: str, **more: Any) -> None:
        report.update(status=status, seconds=round(time.perf_counter() - started, 1), **more)
        target.write_text(json.dumps(report, indent=2) + "\n")

    write("running", machine=machine(), varlen=fit_varlen(varlen))
    try:
        for row in CHECKS[name][0](Workload(TINY if tiny else NV_EMBED, torch.device(device))):
            report["rows"].append(row)
            write("running")
    except Exception:
        write("failed", error=traceback.format_exc())
        raise
    write("done")


def run_with_budget(name: str, target: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a check in a process of its own for as long as its budget lasts; returns its report."""
    started = time.perf_counter()
    # A fork has the libraries loaded, and cannot use a GPU that its parent has looked at.
    method = "fork" if options.device == "cpu" else "spawn"
    process = multiprocessing.get_context(method).Process(
        target=run_check, args=(name, target, options.device, options.tiny)
    )
    process.start()
    process.join(CHECKS[name][1] * options.patience)
    out_of_time = process.is_alive()
    if out_of_time:
        process.kill()
        process.join()
    report = json.loads(target.read_text()) if target.is_file() else {"check": name, "rows": []}
    if report.get("status") in (None, "running"):
        report["status"] = "out of time" if out_of_time else f"died with exit code {process.exitcode}"
        target.write_text(json.dumps(report, indent=2) + "\n")
    seconds = time.perf_counter() - started
    print(f"{name}: {report['status']} after {seconds:.0f} s, {len(report['rows'])} measurements", flush=True)
    for row in report["rows"]:
        print(f"  {json.dumps(row)}", flush=True)
    return report


def bars(reports: list[dict[str, Any]]) -> list[Bar]:
    """The best row of each figure that was measured."""
    rows = [row for report in reports for row in report["rows"] if "bar" in row]
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["value"]):
        best[row["bar"]] = row
    found = [
        Bar(name, best[name]["value"], goal, "higher", tuple(best[name]["spread"]), best[name])
        for name, goal in GOALS.items()
        if name in best
    ]
    if {"gpu_inference", "gpu_short_texts"} <= best.keys():
        whole, short = best["gpu_inference"]["value"], best["gpu_short_texts"]
        low, high = (rate / whole for rate in short["spread"])
        found.append(
            Bar("gpu_short_texts", short["value"] / whole, SHORT_TEXTS_GOAL, "higher", (low, high), short)
        )
    return found


def main() -> None:
    """Run the checks in order; ends with exit code 1 where one did not finish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--skip", nargs="+", choices=CHECKS, default=[])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that it works")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on the budgets of time")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    reports = [
        run_with_budget(name, options.output / f"{name}.json", options)
        for name in CHECKS
        if name in options.only and name not in options.skip
    ]
    if options.device != "cpu":
        write_report(bars(reports), options.output / "bars.json")
    sys.exit(any(report["status"] != "done" for report in reports))


if __name__ == "__main__":
    main()
