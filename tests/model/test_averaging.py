"""Merged checkpoints have the weights that a plain reference computes, and only alike ones are merged."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rayembed
from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.contract import Contract
from rayembed.engine.engine import Engine
from rayembed.model.averaging import chosen_weights, merge_checkpoints
from rayembed.model.backbone import prepare_backbone
from rayembed.model.checkpoint import read_manifest, save_model
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.pooling import LatentPoolingConfig, MeanPoolingConfig
from tests.tiny import make_backbone, make_tokenizer

LATENT = LatentPoolingConfig(num_latents=4, num_heads=2, head_width=8, init="published")


def save(folder, seed, *, head=LATENT, contract=None, tokenizer=None, **changes):
    backbone = prepare_backbone(make_backbone(seed, **changes), "bidirectional")
    for name, parameter in backbone.named_parameters():
        if "norm" in name:
            parameter.data.normal_(mean=1)
    embedder = EmbeddingModel(backbone, ModelConfig(pooling=head))
    provenance = {
        "base_model": "base",
        "sources": ["both", f"own-{seed}"],
        "licences": {f"own-{seed}": "MIT"},
    }
    save_model(folder, embedder, tokenizer or make_tokenizer(), contract or Contract(), provenance=provenance)
    return folder


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parents")
    checkpoints = [save(folder / str(seed), seed) for seed in range(3)]
    whole = checkpoints[1] / "backbone"  # the second has several files
    make_backbone(1).from_pretrained(whole).save_pretrained(whole, max_shard_size="20KB")
    (whole / "model.safetensors").unlink()
    manifest = read_manifest_without_files(checkpoints[1])
    (checkpoints[1] / "rayembed.json").write_text(json.dumps(manifest))
    return checkpoints


def read_manifest_without_files(checkpoint):
    return json.loads((checkpoint / "rayembed.json").read_text()) | {"files": {}}


def weights_of(checkpoint):
    files = sorted(checkpoint.rglob("*.safetensors"))
    return {name: tensor.double().numpy() for file in files for name, tensor in load_file(file).items()}


def plain_slerp(first, second, share):
    angle = np.arccos((first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second))
    return (np.sin((1 - share) * angle) * first + np.sin(share * angle) * second) / np.sin(angle)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_slerp_is_that_of_a_plain_reference(parents, tmp_path, order):
    checkpoints = [parents[index] for index in order]
    merge_checkpoints(checkpoints, tmp_path / "out", (3, 1), "slerp")
    merged, first, second = (weights_of(folder) for folder in (tmp_path / "out", *checkpoints))
    assert merged.keys() == first.keys()
    for name, tensor in merged.items():
        same = np.array_equal(first[name], second[name])
        expected = first[name] if same else plain_slerp(first[name], second[name], 0.25)
        np.testing.assert_allclose(tensor, expected, atol=1e-5, err_msg=name)
    sizes = {folder: len(list((folder / "backbone").glob("*.safetensors"))) for folder in checkpoints}
    assert len(list((tmp_path / "out" / "backbone").glob("*.safetensors"))) == sizes[checkpoints[0]]


def test_a_soup_is_the_weighted_mean_and_records_its_parents(parents, tmp_path):
    folder = rayembed.merge(parents, tmp_path / "soup", weight=[1, 2, 5])
    merged, *all_weights = (weights_of(checkpoint) for checkpoint in (folder, *parents))
    for name, tensor in merged.items():
        mean = np.average([weights[name] for weights in all_weights], axis=0, weights=[1, 2, 5])
        np.testing.assert_allclose(tensor, mean, atol=1e-6, err_msg=name)
    provenance = read_manifest(folder)["provenance"]
    assert provenance["sources"] == ["both", "own-0", "own-1", "own-2"]
    assert provenance["licences"] == {"own-0": "MIT", "own-1": "MIT", "own-2": "MIT"}
    recorded = provenance["merged"]["parents"]
    assert [parent["weight"] for parent in recorded] == [0.125, 0.25, 0.625]
    assert [parent["digest"] for parent in recorded] == [
        json.loads((parent / "rayembed.json").read_text())["digest"] for parent in parents
    ]
    assert Engine.load(folder).encode(["a text"]).vectors.shape == (1, 32)


def test_a_soup_of_one_model_is_that_model_in_its_number_format(parents, tmp_path):
    backbone = prepare_backbone(make_backbone(5).bfloat16(), "bidirectional")
    embedder = EmbeddingModel(backbone, ModelConfig(pooling=LATENT))
    save_model(tmp_path / "half", embedder, make_tokenizer(), Contract())
    merge_checkpoints([tmp_path / "half", parents[0]], tmp_path / "out", (1, 0))
    merged, half = (load_file(tmp_path / name / "backbone" / "model.safetensors") for name in ("out", "half"))
    for name, tensor in merged.items():
        assert tensor.dtype is torch.bfloat16
        assert torch.equal(tensor, half[name])


def test_checkpoints_of_another_kind_are_refused_with_every_difference(parents, tmp_path):
    others = {
        "model.pooling.type was 'latent' and is 'mean'": {"head": MeanPoolingConfig()},
        "backbone.rms_norm_eps was 1e-06 and is 0.01": {"rms_norm_eps": 0.01},
        "contract.max_length was 512 and is 64": {"contract": Contract(max_length=64)},
        "tokenizer has changed": {"tokenizer": make_tokenizer(with_beginning=True)},
        "shapes.layers.0.mlp.up_proj.weight": {"intermediate_size": 64, "contract": Contract(max_length=64)},
    }
    for number, (message, changes) in enumerate(others.items()):
        other = save(tmp_path / str(number), 7, **changes)
        with pytest.raises(CheckpointError) as refused:
            merge_checkpoints([parents[0], other], tmp_path / "out", (1, 1))
        assert message in str(refused.value)
    assert "contract.max_length was 512 and is 64" in str(refused.value)  # the last differs twice
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("weights", "method", "message"),
    [
        ((1,), "soup", "do not fit 2 checkpoints"),
        ((1, -1), "soup", "do not fit"),
        ((0, 0), "soup", "do not fit"),
        ((1, float("nan")), "soup", "do not fit"),
        ((1, 1, 1), "slerp", "slerp takes two checkpoints, not 3"),
    ],
)
def test_weights_that_fit_nothing_are_refused(parents, tmp_path, weights, method, message):
    with pytest.raises(ConfigError, match=message):
        merge_checkpoints(parents[: max(len(weights), 2)], tmp_path / "out", weights, method)


def test_weights_are_chosen_by_a_score():
    # The second is best, the first helps it, the third does not.
    soups = {(1, 0, 0): 0.3, (0, 1, 0): 0.5, (0, 0, 1): 0.4, (0, 1, 1): 0.45, (1, 1, 0): 0.6}
    assert chosen_weights(3, "soup", soups.__getitem__) == (1, 1, 0)
    assert chosen_weights(2, "slerp", lambda weights: -abs(weights[1] - 0.7)) == (0.25, 0.75)


def test_the_command_chooses_weights_by_tasks(parents, tmp_path, monkeypatch, capsys):
    def scored(checkpoint, *, output, tasks, task_files, name):
        assert (output, tasks, task_files) == (tmp_path / "out-validation", ["One", "Two"], ["own.yaml"])
        share = read_manifest(checkpoint)["provenance"]["merged"]["parents"][1]["weight"]
        return {task: {"trained": 1 - abs(share - 0.5)} for task in tasks}

    monkeypatch.setattr("rayembed.evaluation.run.run", scored)
    rayembed.merge(parents[:2], tmp_path / "out", method="slerp", tasks="One,Two", task_file=["own.yaml"])
    assert "slerp with weights 0.5, 0.5" in capsys.readouterr().out
    for arguments, message in (
        ({"tasks": "One", "weight": [1, 1]}, "leave one of the two out"),
        ({"output": parents[0]}, "an output that is none of them"),
    ):
        with pytest.raises(ConfigError, match=message):
            rayembed.merge(parents[:2], **{"output": tmp_path / "out"} | arguments)
