"""Rules of the code that no linter checks."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE = 400


@pytest.fixture(scope="module")
def sources() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def test_files_stay_short(sources):
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources}
    assert lengths
    assert {name: length for name, length in lengths.items() if length >= LONGEST_FILE} == {}


def test_weights_are_never_pickled_and_remote_code_never_trusted(sources):
    """safetensors only; ruff bans pickle.load, this bans what would call it. Texts may mention the names."""
    library = [path for path in sources if "tests" not in path.relative_to(ROOT).parts]
    calls = [
        (path.name, call)
        for path in library
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
    ]
    assert calls
    for name, call in calls:
        assert ast.unparse(call.func) not in ("torch.save", "torch.load"), name
        for keyword in call.keywords:
            trusted = keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
            assert not trusted, name


def test_public_classes_of_the_library_have_names_of_their_own(sources):
    places: dict[str, list[str]] = {}
    for path in sources:
        if "platform" in path.relative_to(ROOT).parts:
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert places
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
