"""Every benchmark one after the other, and one table of all figures.

python benchmarks/all.py [--quick] [--only NAME ...] --json OUT
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from harness import Bar, arguments, write_report

FOLDER = Path(__file__).parent
NOT_BENCHMARKS = {"all", "evaluation_resume", "harness", "inputs", "training_runs", "training_steps"}
# Those that train for an hour, soak for a quarter of one, or ask for a trained run: start them by name.
LONG = {"mining_quality", "quality", "serving_soak", "training"}


def names() -> list[str]:
    """Benchmarks of this folder."""
    return sorted({path.stem for path in FOLDER.glob("*.py")} - NOT_BENCHMARKS)


def bars_of(name: str, quick: bool) -> list[Bar]:
    """Run one benchmark in a process of its own; a failure is told and leaves the others alone."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, str(FOLDER / f"{name}.py"), "--json", str(report)]
        finished = subprocess.run([*command, "--quick"] if quick else command, check=False)
        if finished.returncode:
            print(f"{name} failed with exit code {finished.returncode}", file=sys.stderr)
            return []
        return [
            Bar(**bar | {"spread": tuple(bar["spread"])}) for bar in json.loads(report.read_text())["bars"]
        ]


def main() -> None:
    """Run the chosen benchmarks; ends with exit code 1 where one of them failed."""
    parser = arguments(__doc__.splitlines()[0])
    default = [name for name in names() if name not in LONG]
    parser.add_argument("--only", nargs="+", choices=names(), default=default, help="benchmarks to run")
    options = parser.parse_args()
    results = {name: bars_of(name, options.quick) for name in options.only}
    write_report([bar for bars in results.values() for bar in bars], options.json)
    sys.exit(any(not bars for bars in results.values()))


if __name__ == "__main__":
    main()
