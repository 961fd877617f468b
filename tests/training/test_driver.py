"""The process that starts a run is small: it may be a laptop, or a head without memory for the model."""

import pytest
import ray
import torch

from rayembed.common.errors import ResourceError
from rayembed.common.ray_cluster import connect, run_apart
from rayembed.config.loading import load_config
from rayembed.model import backbone
from rayembed.model.checkpoint import load_model, read_manifest
from rayembed.training.model import ModelSpec
from rayembed.training.run import train
from tests.training_jobs import write_recipe

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        connect(num_cpus=3)
        yield
        ray.shutdown()


@pytest.mark.slow
def test_the_driver_never_holds_a_model(home, tiny_base, monkeypatch):
    """Copies, both stages, the merge between them, a validation and the export are all made elsewhere."""
    monkeypatch.setattr(backbone, "_load_weights", lambda *_: pytest.fail("weights are loaded by the driver"))
    monkeypatch.setattr(ModelSpec, "build", lambda *_: pytest.fail("a model is built by the driver"))
    recipe = write_recipe(home, tiny_base, "small-driver")
    steps = [f"stages.{n}.{key}" for n in (0, 1) for key in ("steps=2", "warmup_steps=0")]
    settings = ["stages.1.adapters=merge", "training.checkpoint_every=1", "training.saved_precision=bf16"]
    folder = train(load_config(recipe, [*steps, *settings]))
    monkeypatch.undo()
    assert read_manifest(folder)["provenance"]["stages"][1]["kept_step"] == 2
    assert load_model(folder, dtype="auto").embedder.backbone.dtype is torch.bfloat16
    assert load_model(folder.parent / "untrained").embedder.pooling.state_dict() == {}


def test_a_task_that_no_node_has_memory_for_is_refused():
    with pytest.raises(ResourceError, match=r"^merging needs 1048576\.0 GiB of memory on one node and the"):
        run_apart(lambda: None, what="merging", memory=2**50)


def test_a_users_mistake_comes_back_as_it_is():
    def mistaken():
        raise ResourceError("no such file")

    with pytest.raises(ResourceError, match=r"^no such file$"):
        run_apart(mistaken, what="this", memory=2**20)
