"""The source root is called platform/, like a module of the standard library, which must win everywhere."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECK = "import platform, rayembed; print(platform.python_version())"


@pytest.mark.parametrize("folder", ["platform", "jobs", "serve"])
def test_folder_is_no_package(folder):
    """An __init__.py would shadow the standard library's platform, or ray.serve beside `import serve`."""
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_under_pytest():
    assert str(ROOT) in sys.path
    assert platform.python_version()


@pytest.mark.parametrize("source_path", ["platform", f".{os.pathsep}platform"])
def test_python_module_from_the_root(source_path):
    """`python -m` and `python -c` put the current folder, which holds platform/, first on the path."""
    run = run_python("-c", CHECK, PYTHONPATH=source_path)
    assert run == platform.python_version()
    assert "usage" in run_python("-m", "json.tool", "--help", PYTHONPATH=source_path)


def test_script_in_the_root():
    script = ROOT / f".platform_check_{os.getpid()}.py"
    script.write_text(CHECK)
    try:
        assert run_python(script.name, PYTHONPATH="platform") == platform.python_version()
    finally:
        script.unlink()


def test_serve_folder_does_not_hide_ray_serve():
    assert "ray/serve" in run_python("-c", "import serve.app, ray.serve; print(ray.serve.__file__)")


@pytest.mark.ray
def test_ray_worker_with_a_working_dir(tmp_path):
    """Workers run in a copy of the tree with a relative PYTHONPATH, as those of a submitted job do."""
    copy = tmp_path / "checkout"
    (copy / "platform").mkdir(parents=True)
    (copy / "platform" / "rayembed").symlink_to(ROOT / "platform" / "rayembed")
    script = tmp_path / "driver.py"
    script.write_text(
        "import ray\n"
        "ray.init('local', num_cpus=1, include_dashboard=False, logging_level='ERROR', log_to_driver=False,\n"
        f"         runtime_env={{'working_dir': {str(copy)!r}, 'env_vars': {{'PYTHONPATH': 'platform'}}}})\n"
        "@ray.remote\n"
        "def check():\n"
        "    import platform, rayembed\n"
        "    return platform.python_version() + ' ' + rayembed.__file__\n"
        "print(ray.get(check.remote()))\n"
    )
    version, file = run_python(str(script)).split(maxsplit=1)
    assert version == platform.python_version()
    assert "working_dir" in file


def run_python(*arguments: str, **environment: str) -> str:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")
    }
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=inherited | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
