"""The shipped flagship recipe in miniature: submitted to a CPU head, on a node that claims eight H100s."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from rayembed.config.loading import SHIPPED, load_config
from rayembed.model.checkpoint import read_manifest
from rayembed.quickstart.head import local_head
from tests.training_jobs import ROOT, trace, training_workers, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(1800)]

STEPS = {"retrieval": 16, "blend": 6}
RAY = Path(sys.executable).parent / "ray"
DRIVER_KIB = 2 << 20  # 2 GiB that the driver may ask for, used or not
WORDS = ("sun", "rain", "snow", "wind", "fog", "hail", "dew", "ice")


def write_flagship(home: Path, base: Path) -> Path:
    """A recipe that makes nv-embed-v2-8x80gb small: base model, steps, batch and rows, and nothing else."""
    flagship = load_config("nv-embed-v2-8x80gb")
    for name, source in flagship.data.sources.items():
        if source.kind == "labels":
            rows = [{"text": f"{word} {n} of {name}", "label": word} for n in range(4) for word in WORDS]
        else:
            rows = [
                {
                    "query": f"{word} {n}",
                    "positive": f"{word} {n} of {name}",
                    "negatives": [f"{other} {n + 1} of {name}" for other in WORDS if other != word],
                }
                for n in range(4)
                for word in WORDS
            ]
        path = home / "data" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"batch_size": 16, "warmup_steps": 2, "learning_rate": 1e-3}
    recipe = {
        "extends": str(SHIPPED / "nv-embed-v2-8x80gb.yaml"),
        "name": "flagship",
        "base_model": str(base),
        "data": {
            "contamination": None,  # its judgements come from the hub
            "sources": {name: {"path": f"data/{name}.jsonl"} for name in flagship.data.sources},
        },
        "stages": {stage: {"steps": steps} | small for stage, steps in STEPS.items()},
        "training": {"checkpoint_every": 4, "log_every": 1},
    }
    file = home / "flagship.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def test_the_flagship_goes_from_a_submitted_job_to_a_checkpoint_through_a_kill(home, tiny_base, capfd):
    recipe, run_folder = write_flagship(home, tiny_base), home / "runs" / "flagship"
    metrics, log = run_folder / "metrics.jsonl", home / "runs" / "ray-head.log"
    entrypoint = ["python", "jobs/train.py", str(recipe)]
    limited = ["bash", "-c", f"ulimit -d {DRIVER_KIB} && exec {' '.join(entrypoint)}"]
    variables = {"RAYEMBED_FAKE_GPUS": "1", "DS_ACCELERATOR": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with local_head(home) as head:
            node = subprocess.Popen(
                [
                    str(RAY),
                    "start",
                    "--block",
                    "--address",
                    head.address,
                    "--node-ip-address",
                    "127.0.0.1",
                    "--num-cpus",
                    "8",
                    "--num-gpus",
                    "8",
                    "--resources",
                    '{"accelerator_type:H100": 1}',
                ],
                env=os.environ | head.environment,
                start_new_session=True,
            )
            try:
                head.jobs.submit_job(entrypoint=shlex.join(limited), runtime_env={"working_dir": str(ROOT)})
                wait_for(lambda: metrics.is_file() and len(trace(run_folder)) > 8, log)
                [driver] = [
                    process
                    for process in psutil.process_iter(["cmdline"])
                    if process.info["cmdline"][1:] == entrypoint[1:]
                ]
                assert len(training_workers(node)) == 8
                driver.kill()
                head.submit(limited, working_dir=ROOT)
            finally:
                node.terminate()
                node.wait()
    output = capfd.readouterr().out
    [(step, workers)] = set(
        re.findall(r"stage retrieval continues at step (\d+) of \d+, (\d+) worker", output)
    )
    assert int(step) >= 4
    assert workers == "8"
    stages = [stage for stage, steps in STEPS.items() for _ in range(steps)]
    expected = [(stage, step) for step, stage in enumerate(stages)]
    assert [line[:2] for line in trace(run_folder)] == expected
    assert read_manifest(run_folder / "model")["files"]
