"""The wheel, installed outside the checkout, trains, embeds and serves from an empty folder."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.training_jobs import ROOT, write_recipe

PARTS = ("pyproject.toml", "README.md", "LICENSE", "platform", "jobs")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds the installed wheel and nothing else; what it depends on is borrowed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for part in PARTS:  # a copy: a build in the checkout would leave files there, and use old ones
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / part, source / part, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / part, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source), str(source)]
    subprocess.run([*pip, *build], check=True)
    [wheel] = source.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def environment(installation: Path, home: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return inherited | {
        "PYTHONPATH": str(installation),
        "RAYEMBED_HOME": str(home),
        "DS_ACCELERATOR": "cpu",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }


@pytest.mark.ray
@pytest.mark.slow
def test_a_wheel_trains_embeds_and_serves_from_an_empty_folder(installation, tiny_base, tmp_path):
    settings = environment(installation, tmp_path)
    command = str(installation / "bin" / "rayembed")

    def rayembed(*arguments: str) -> str:
        finished = subprocess.run(
            [command, *arguments], cwd=tmp_path, env=settings, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    where = "import rayembed; print(rayembed.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=settings, capture_output=True, text=True
    )
    assert found.stdout.startswith(str(installation))
    write_recipe(tmp_path, tiny_base, "tiny", stages=1)
    assert "model: " in rayembed("train", "tiny.yaml", "--set", "stages.0.steps=4")
    to_embed = ("--checkpoint", "runs/tiny/model", "--output", "vectors", "--text-column", "query")
    assert "48 vectors" in rayembed("embed", "pairs.jsonl", *to_embed, "--actors", "0")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = [command, "serve", "runs/tiny/model", "--port", str(port), "--drain-seconds", "0"]
    server = subprocess.Popen(serve, cwd=tmp_path, env=settings, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("ready: ") for line in server.stdout)
        body = json.dumps({"model": "model", "input": ["sun 1"]}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/embeddings", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["data"][0]["embedding"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
            assert b"<html" in page.read()
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_the_shipped_recipes_are_in_the_wheel(installation):
    shipped = {path.name for path in (installation / "rayembed" / "recipes").glob("*.yaml")}
    assert shipped == {path.name for path in (ROOT / "jobs" / "configs").glob("*.yaml")}
