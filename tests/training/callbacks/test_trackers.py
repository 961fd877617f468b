"""Optional trackers, each through its own library without a server; skipped where it is not installed."""

import pytest

from rayembed.common.errors import ResourceError
from rayembed.training.callbacks import trackers

RECIPE = "{name: tiny, training: {workers: 2}}"


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(trackers._TRACKERS, "wandb", ("no_such_library", None))
    with pytest.raises(ResourceError, match=r"no_such_library is not installed; run `pip install"):
        trackers.check_trackers(("wandb",))
    monkeypatch.setitem(trackers._TRACKERS, "mlflow", ("nor_this_one", None))
    with pytest.raises(ResourceError, match=r"(?s)2 mistakes.*no_such_library is not.*nor_this_one is not"):
        trackers.check_trackers(("wandb", "mlflow"))


def test_mlflow_keeps_one_run_over_a_resume(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step in (1, 2):
        [tracker] = trackers.start_trackers(("mlflow",), tmp_path, RECIPE)
        tracker.log({"train/loss": 0.5 / step}, step)
        tracker.close()
    [run] = mlflow.search_runs(experiment_names=["rayembed"], output_format="list")
    assert run.data.params["training.workers"] == "2"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.25)]


def test_wandb_works_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    [tracker] = trackers.start_trackers(("wandb",), tmp_path, RECIPE)
    tracker.log({"train/loss": 0.5}, 1)
    tracker.close()
    [folder] = (tmp_path / "wandb").glob("offline-run-*")
    assert next(iter(folder.glob("*.wandb"))).stat().st_size > 0
