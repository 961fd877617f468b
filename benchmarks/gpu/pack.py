"""Make one archive with all that `run.py` needs on a machine with torch and without a network.

python benchmarks/gpu/pack.py build/gpu.tar.gz [--python 3.12]

There: tar xzf gpu.tar.gz && PYTHONPATH=gpu/site python3 gpu/benchmarks/gpu/run.py --output results

The machine brings torch and what transformers needs besides itself, such as tokenizers, huggingface-hub and
numpy. It brings accelerate, scipy, psutil and prometheus-client too.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS = (
    "transformers", "peft", "pydantic", "pydantic-core", "annotated-types", "typing-inspection",
    "hjson", "einops", "torchao",
)  # fmt: skip
COPIED = ("deepspeed",)  # has no wheel; what is installed here is plain Python
LARGEST = 64 * 2**20


def download(folder: Path, python: str) -> list[Path]:
    """Wheels of the packages, in the versions that are installed here where they are."""
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_24", "_2_17", "2014")]
    for name in WHEELS:
        try:
            wanted = f"{name}=={metadata.version(name)}"
        except metadata.PackageNotFoundError:
            wanted = name
        options = ["--no-deps", "--only-binary=:all:", f"--python-version={python}", *platforms]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "-d", str(folder), *options, wanted]
        subprocess.run(command, check=True)
    return sorted(folder.glob("*.whl"))


def add_to_site(archive: tarfile.TarFile, wheels: list[Path], folder: Path) -> None:
    """Packages as they would lie in site-packages, and the library."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as content:
            content.extractall(folder)
    archive.add(folder, "gpu/site")
    for name in COPIED:
        for file in metadata.files(name) or []:
            if file.parts[0].startswith(name) and file.suffix != ".pyc":
                archive.add(str(file.locate()), f"gpu/site/{file}")


def main() -> None:
    """Write the archive; ends the program when it is larger than one transfer takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--python", default="3.12", help="version of Python there")
    options = parser.parse_args()
    options.archive.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as wheels,
        tempfile.TemporaryDirectory() as site,
        tarfile.open(options.archive, "w:gz") as archive,
    ):
        add_to_site(archive, download(Path(wheels), options.python), Path(site))
        for part in ("platform/rayembed", "benchmarks/gpu", "benchmarks/harness.py"):
            archive.add(
                ROOT / part, f"gpu/{part}", filter=lambda item: None if "__pycache__" in item.name else item
            )
    size = options.archive.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{options.archive} has {size:,} bytes, more than the {LARGEST:,} of one transfer")
    print(f"{options.archive}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
