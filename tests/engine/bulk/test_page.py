"""The Python examples of docs/embed.md run."""

import re
import shutil
from pathlib import Path

import numpy as np

PAGE = Path(__file__).resolve().parents[3] / "docs" / "embed.md"


def test_the_examples_run_one_after_the_other(tiny_checkpoint, home, monkeypatch, capsys):
    shutil.copytree(tiny_checkpoint, home / "runs/quickstart/model")
    monkeypatch.chdir(home)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(examples) >= 3
    names: dict = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    assert "[[" in capsys.readouterr().out
    vectors = np.load("vectors.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
