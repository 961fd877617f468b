"""Checkpoint folders: what is damaged is found, and what was left by another attempt does no harm."""

import json
import logging
from pathlib import Path

import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from rayembed.common.errors import CheckpointError, ConfigError, ResourceError
from rayembed.training.checkpoint import (
    CheckpointStore,
    TrainingState,
    load_training_state,
    open_store,
    write_training_state,
)
from tests.training.recipes import PAIRS, recipe

FILES = ("trainable.safetensors", "moments.safetensors", "state.json")


def state(step: int) -> TrainingState:
    return TrainingState("one", step, step, {"a": torch.arange(3.0)}, {"exp_avg.a": torch.ones(3)})


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_refused(tmp_path, file, damage):
    write_training_state(tmp_path, state(4))
    assert load_training_state(tmp_path).next_step == 4
    damage(tmp_path / file)
    with pytest.raises(CheckpointError, match=r"(is damaged|not written to its end).*; remove .* again"):
        load_training_state(tmp_path)


def test_a_changed_step_is_noticed(tmp_path):
    write_training_state(tmp_path, state(4))
    path = tmp_path / "state.json"
    path.write_text(path.read_text().replace('"next_step": 4', '"next_step": 5'))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        load_training_state(tmp_path)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_checkpoints_are_written_listed_and_emptied(tmp_path, remote):
    filesystem, path = LocalFileSystem(), str(tmp_path)
    if remote:
        filesystem, path = SubTreeFileSystem(path, filesystem), "bucket/run"
    store = CheckpointStore(filesystem, path)
    assert (store.names(), store.newest_step()) == ([], 0)
    for step in (4, 8):
        store.write(store.new_name(step), state(step))
    assert store.names() == ["step-0000008", "step-0000004"]
    with store.checkpoint("step-0000008").as_directory() as folder:
        assert json.loads((tmp_path / folder / "state.json").read_text())["next_step"] == 8
    assert store.newest_step() == 8
    assert store.clear("step-0000008")
    assert store.newest_step() == 4
    assert not store.exists("step-0000008/state.json")
    assert store.new_name(8) == "step-0000008-1"
    store.write("step-0000008-1", state(8))
    assert store.names()[0] == "step-0000008-1"


@pytest.mark.parametrize("content", ['{"checkpoint_results": [{"checkp', "[]", "", None], ids=str)
def test_a_torn_list_of_checkpoints_is_set_aside(tmp_path, caplog, content):
    caplog.set_level(logging.WARNING, logger="rayembed")
    store = CheckpointStore(LocalFileSystem(), str(tmp_path))
    store.mend()
    good = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "step-0000004"}]})
    snapshot = tmp_path / "checkpoint_manager_snapshot.json"
    store.write("step-0000004", state(4))
    snapshot.write_text(good)
    store.mend()
    assert snapshot.read_text() == good
    assert not caplog.records
    if content is None:
        store.filesystem.delete_dir(f"{store.path}/step-0000004")
    else:
        snapshot.write_text(content)
    store.mend()
    assert not snapshot.exists()
    [record] = caplog.records
    assert ("step-0000004, which is missing" if content is None else "is damaged") in record.getMessage()


def store_at(location: str | None, stage_folder: Path, **changes) -> CheckpointStore:
    config = recipe(PAIRS, training={"checkpoint_storage": location}).model_copy(update=changes)
    return open_store(location, run_name=config.name, recipe=config.to_yaml(), stage_folder=stage_folder)


def test_checkpoints_can_be_kept_elsewhere_but_not_two_runs_in_one_place(home):
    stage = home / "runs" / "prepared" / "stages" / "0-one"
    assert store_at(None, stage).path == str(stage / "ray-train")
    elsewhere = home / "elsewhere"
    for location in ("elsewhere", elsewhere.as_uri()):
        assert store_at(location, stage).path == f"{elsewhere}/prepared/0-one/ray-train"
    assert (elsewhere / "prepared" / "recipe.yaml").is_file()
    with pytest.raises(ConfigError, match=r"checkpoints of another recipe \(seed was .*set name"):
        store_at("elsewhere", stage, seed=1234)


def test_storage_that_cannot_be_used_is_named(home):
    (home / "file").write_text("")
    with pytest.raises(ResourceError, match=r"training\.checkpoint_storage file/below cannot be used"):
        store_at("file/below", home)
    with pytest.raises(ConfigError, match=r"training\.checkpoint_storage: gopher"):
        store_at("gopher://there", home)
