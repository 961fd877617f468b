"""Make archives with all that `run.py` and `whole.py` need on a machine with torch and without a network.

python benchmarks/gpu/pack.py build/gpu.tar.gz [--python 3.12]      the six checks
python benchmarks/gpu/pack.py build/gpu-ray.tar.xz --ray            these and the whole path, in two files

There:
    tar xzf gpu.tar.gz && PYTHONPATH=gpu/site python3 gpu/benchmarks/gpu/run.py --output results
    cat gpu-ray.tar.xz.* | tar xJ && python3 gpu/benchmarks/gpu/whole.py --output results

The machine brings torch and what transformers needs besides itself, such as tokenizers, huggingface-hub and
numpy, and the packages of `THERE`.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "platform"))

WHEELS = (
    "transformers", "peft", "pydantic", "pydantic-core", "annotated-types", "typing-inspection",
    "hjson", "einops", "torchao",
)  # fmt: skip
COPIED = ("deepspeed",)  # has no wheel; what is installed here is plain Python
THERE = (
    "accelerate", "aiohttp", "grpcio", "msgpack", "ninja", "pandas", "prometheus-client", "psutil",
    "py-cpuinfo", "pyarrow", "requests", "scipy", "sentence-transformers", "tensorboard", "torch", "typer",
    "uvloop", "werkzeug", "wrapt", "xxhash",
)  # fmt: skip
NEEDLESS = ("ray/jars/", "ray/cpp/", "ray/rllib/")  # most of Ray's wheel
LARGEST = 64 * 2**20


def needed(name: str, python: str) -> set[str]:
    """A package that is installed here and all that it needs."""
    waiting: list[tuple[str, tuple[str, ...]]] = [(canonicalize_name(name), ())]  # with their extras
    seen = set()
    while waiting:
        seen.add(package := waiting.pop())
        for requirement in map(Requirement, metadata.requires(package[0]) or []):
            target = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
            there = {"python_version": python}
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate(there | {"extra": extra}) for extra in ("", *package[1])
            )
            if wanted and target not in seen:
                waiting.append(target)
    return {package for package, _ in seen}


def download(names: Iterable[str], folder: Path, python: str) -> list[Path]:
    """Wheels of the packages, in the versions that are installed here where they are."""
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_24", "_2_17", "2014", "1")]
    for name in names:
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
            names = [name for name in content.namelist() if not name.startswith(NEEDLESS)]
            content.extractall(folder, names)
    archive.add(folder, "gpu/site")
    for name in COPIED:
        for file in metadata.files(name) or []:
            if file.parts[0].startswith(name) and file.suffix != ".pyc":
                archive.add(str(file.locate()), f"gpu/site/{file}")
    archive.add(ROOT / "benchmarks" / "gpu" / "fitting.py", "gpu/site/sitecustomize.py")


def make_home(folder: Path) -> None:
    """The quickstart's data and tokenizer, from the workspace or built there."""
    from rayembed.common.paths import workspace
    from rayembed.config.loading import load_config
    from rayembed.data.store import build_source
    from rayembed.model.base_model import prepare_base_model

    stages = load_config("quickstart").stages
    for name in sorted({entry.source for stage in stages for entry in stage.blend}):
        built = build_source(name, workspace() / "data")
        shutil.copytree(built, folder / "data" / name, ignore=shutil.ignore_patterns("*.npz"))
    (folder / "tokenizer").mkdir()
    base = Path(prepare_base_model("smollm2-135m", workspace() / "models", layers=4))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / file, folder / "tokenizer")


def split(path: Path) -> list[Path]:
    """Cut a file into two of one size, in place of itself."""
    content = path.read_bytes()
    half = len(content) // 2 + 1
    parts = [path.with_name(f"{path.name}.{number}") for number in (1, 2)]
    for part, piece in zip(parts, (content[:half], content[half:]), strict=True):
        part.write_bytes(piece)
    path.unlink()
    return parts


def main() -> None:
    """Make the archive; ends the program when a file is larger than one transfer takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--ray", action="store_true", help="for the whole path too")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    options = parser.parse_args()
    options.archive.parent.mkdir(parents=True, exist_ok=True)
    names = set(WHEELS)
    if options.ray:
        there = set().union(*(needed(name, options.python) for name in THERE))
        names |= needed("rayembed", options.python) - there - {"rayembed", *COPIED}
    with (
        tempfile.TemporaryDirectory() as wheels,
        tempfile.TemporaryDirectory() as site,
        tempfile.TemporaryDirectory() as home,
        tarfile.open(options.archive, "w:xz" if options.ray else "w:gz") as archive,
    ):
        add_to_site(archive, download(sorted(names), Path(wheels), options.python), Path(site))
        for part in ("platform/rayembed", "benchmarks"):
            archive.add(
                ROOT / part,
                f"gpu/{part}",
                filter=lambda item: None if {"__pycache__", "results"} & {*item.name.split("/")} else item,
            )
        if options.ray:
            make_home(Path(home))
            archive.add(home, "gpu/home")
    for file in split(options.archive) if options.ray else [options.archive]:
        size = file.stat().st_size
        print(f"{file}: {size / 2**20:.1f} MiB")
        if size > LARGEST:
            raise SystemExit(f"{file} is larger than the {LARGEST:,} bytes of one transfer")


if __name__ == "__main__":
    main()
