"""The loss and the head of docs/extend.md train in a copy of the package: one file and one entry each."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "extend.md"

STEP = """
import torch
from pathlib import Path
from rayembed.data.stream import local_batches
from rayembed.model.backbone import prepare_backbone
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.training.resources import StepTimer
from rayembed.training.step import contrastive_loss, encode_and_backward
from tests.tiny import make_backbone, save_base
from tests.training.models import Unwrapped
from tests.training.sources import stage, stream_spec

folder = Path("work")
settings = stage(temperature=None, loss=[{"type": "margin", "margin": 0.5}])
spec = stream_spec(folder, save_base(folder / "base"), settings)
[batch] = local_batches(spec, start=0, stop=1)
model = ModelConfig.model_validate({"pooling": {"type": "first"}})
wrapped = Unwrapped(EmbeddingModel(prepare_backbone(make_backbone(), "bidirectional"), model))
optimizer = torch.optim.Adam(wrapped.module.parameters(), lr=1e-3)
losses = []
for _ in range(5):
    optimizer.zero_grad()
    output = encode_and_backward(
        wrapped, batch.packed, lambda v: contrastive_loss(v, batch, settings, StepTimer()), StepTimer()
    )
    assert wrapped.module.pooling.weight.grad.abs().sum() > 0
    optimizer.step()
    losses.append(float(output.loss))
assert losses[-1] < losses[0], losses
print("trained")
"""


def files_of_the_page() -> dict[str, str]:
    """The page's Python files, path below the package -> content."""
    blocks = re.findall(r'^    ```python title="([^"]+)"\n(.*?)^    ```$', PAGE.read_text(), re.S | re.M)
    return {name: textwrap.dedent(content) for name, content in blocks}


def register(registry: Path, module: str, name: str) -> None:
    """The import and the entry that the page asks for."""
    text = registry.read_text()
    entries, end = ",\n    Field(discriminator", f"\n    | {name},\n    Field(discriminator"
    assert text.count(entries) == 1
    text = text.replace(entries, end)
    registry.write_text(text.replace("\nfrom rayembed", f"\nfrom {module} import {name}\nfrom rayembed", 1))


@pytest.mark.slow
def test_a_loss_and_a_head_of_one_file_each_train_together(tmp_path):
    package = tmp_path / "platform" / "rayembed"
    shutil.copytree(ROOT / "platform" / "rayembed", package, ignore=shutil.ignore_patterns("__pycache__"))
    files = files_of_the_page()
    assert set(files) == {"losses/my_margin.py", "model/pooling/my_first.py"}
    for name, content in files.items():
        (package / name).write_text(content)
    register(package / "losses/__init__.py", "rayembed.losses.my_margin", "MarginConfig")
    register(package / "model/pooling/__init__.py", "rayembed.model.pooling.my_first", "FirstTokenConfig")
    result = subprocess.run(
        [sys.executable, "-c", STEP],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip().endswith("trained"), result.stderr
