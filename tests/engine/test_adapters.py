"""Adapters that peft saved, over the weights of one engine."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from rayembed.common.errors import CheckpointError
from rayembed.engine.engine import Engine
from rayembed.model.backbone import load_backbone

TEXTS = ["a", "some longer text", "3 things"]


def save_adapter(checkpoint, folder, seed, **settings):
    """A random adapter of the checkpoint's backbone, and the backbone that has it merged."""
    torch.manual_seed(seed)
    backbone = load_backbone(checkpoint / "backbone", dtype=torch.float32, attention="bidirectional")
    config = LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, **settings)
    model = get_peft_model(backbone, config)
    model.save_pretrained(folder)
    return model.merge_and_unload()


@pytest.fixture
def engine(checkpoint):
    return Engine.load(checkpoint, device="cpu", precision="fp32")


def test_each_adapter_gives_the_vectors_of_its_merged_model(engine, checkpoint, tmp_path):
    tokenized = engine.tokenize(TEXTS)
    plain = engine.encode_tokens(tokenized)
    merged = {
        "first": save_adapter(checkpoint, tmp_path / "first", 1, target_modules=["q_proj", "v_proj"]),
        "a.b/c": save_adapter(checkpoint, tmp_path / "second", 2, target_modules=["q_proj", "up_proj"]),
    }
    digests = {
        engine.add_adapter("first", tmp_path / "first"),
        engine.add_adapter("a.b/c", tmp_path / "second"),
    }
    assert len(digests) == 2
    for name, backbone in merged.items():
        reference = Engine.load(checkpoint, device="cpu", precision="fp32", backend="torch")
        reference._embedder.backbone = backbone
        vectors = engine.encode_tokens(tokenized, adapter=name)
        np.testing.assert_allclose(vectors, reference.encode_tokens(tokenized), atol=1e-6)
        assert np.abs(vectors - plain).max() > 1e-3
        np.testing.assert_array_equal(engine.encode_tokens(tokenized), plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r"model\.layers\.\d+\.self_attn\.[kv]_proj"},
        {"target_modules": r".*\.o_proj", "alpha_pattern": {"model.layers.0.self_attn.o_proj": 64}},
        {"target_modules": ["k_proj", "up_proj"], "rank_pattern": {r"layers\.1\..*": 3, "up_proj": 5}},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "use_rslora": True},
        {"target_modules": "all-linear", "exclude_modules": ["q_proj"]},
    ],
)
def test_patterns_mean_the_names_of_the_language_model(engine, checkpoint, tmp_path, settings):
    torch.manual_seed(1)
    backbone = load_backbone(checkpoint / "backbone", dtype=torch.float32, attention="bidirectional")
    language_model = torch.nn.Module()  # names as in a causal language model: model.layers.0 and so on
    language_model.model, language_model.config = backbone, backbone.config
    trained = get_peft_model(
        language_model, LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, **settings)
    )
    trained.save_pretrained(tmp_path)
    engine.add_adapter("own", tmp_path)
    tokenized = engine.tokenize(TEXTS)
    reference = Engine.load(checkpoint, device="cpu", precision="fp32", backend="torch")
    reference._embedder.backbone = trained.merge_and_unload().model
    np.testing.assert_allclose(
        engine.encode_tokens(tokenized, adapter="own"), reference.encode_tokens(tokenized), atol=1e-6
    )


def test_adapters_in_bf16(checkpoint, tmp_path):
    save_adapter(checkpoint, tmp_path, 1, target_modules=["q_proj", "v_proj"])
    vectors = {}
    for precision in ("fp32", "bf16"):
        engine = Engine.load(checkpoint, device="cpu", precision=precision)
        engine.add_adapter("own", tmp_path)
        vectors[precision] = engine.encode_tokens(engine.tokenize(TEXTS), adapter="own")
    assert (vectors["fp32"] * vectors["bf16"]).sum(axis=1).min() > 0.999


def test_folders_that_are_no_adapter_of_the_model(engine, checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"not an adapter: it has no adapter_config\.json"):
        engine.add_adapter("x", tmp_path)
    save_adapter(checkpoint, tmp_path / "dora", 1, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(CheckpointError, match="not a plain LoRA adapter"):
        engine.add_adapter("x", tmp_path / "dora")
    save_adapter(checkpoint, tmp_path / "other", 1, target_modules=["q_proj"])
    config = (tmp_path / "other" / "adapter_config.json").read_text()
    (tmp_path / "other" / "adapter_config.json").write_text(config.replace("q_proj", "wqkv"))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        engine.add_adapter("x", tmp_path / "other")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter_config.json", {"init_lora_weights": "pissa"}, "changes the model's own weights.*pissa"),
        ("adapter_config.json", {"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ("adapter_config.json", {"alora_invocation_tokens": [1, 2]}, "waits for tokens that call it"),
        ("adapter_config.json", {"target_modules": "("}, "does not fit the model or has damaged files"),
        ("adapter_config.json", {"peft_type": "lora"}, "does not fit the model or has damaged files"),
        ("adapter_config.json", b"{", "does not fit the model or has damaged files"),
        (
            "adapter_model.safetensors",
            b"version https://git-lfs",
            "does not fit the model or has damaged files",
        ),
    ],
)
def test_adapters_that_change_the_model_or_are_damaged(engine, checkpoint, tmp_path, file, change, message):
    save_adapter(checkpoint, tmp_path, 1, target_modules=["q_proj"])
    before = engine.encode(TEXTS).vectors
    path = tmp_path / file
    path.write_bytes(
        change if isinstance(change, bytes) else json.dumps(json.loads(path.read_text()) | change).encode()
    )
    with pytest.raises(CheckpointError, match=message):
        engine.add_adapter("x", tmp_path)
    np.testing.assert_array_equal(engine.encode(TEXTS).vectors, before)
