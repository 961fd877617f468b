"""The published NV-Embed folder: full-size names and shapes, and a narrow folder in and out."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rayembed.cli.main import app
from rayembed.common.errors import CheckpointError
from rayembed.contract import Contract
from rayembed.engine.engine import Engine
from rayembed.model.backbone import prepare_backbone
from rayembed.model.checkpoint import save_model
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.export.nv_embed import (
    expected_shapes,
    export_nv_embed,
    import_nv_embed,
    read_nv_embed_configuration,
)
from rayembed.model.pooling import LatentPoolingConfig, MeanPoolingConfig
from tests.mistral_tokenizer import mistral_tokenizer, sentencepiece_file
from tests.model.reference import nv_embed_vector
from tests.tiny import make_backbone, make_tokenizer

PUBLISHED_CONFIG = {
    "architectures": ["NVEmbedModel"],
    "model_type": "nvembed",
    "hidden_size": 4096,
    "padding_side": "right",
    "add_pad_token": True,
    "add_eos": True,
    "is_mask_instruction": True,
    "mask_type": "b",
    "torch_dtype": "float16",
    "text_config": {"model_type": "bidir_mistral"},
    "latent_attention_config": {"model_type": "latent_attention"},
}
WIDTH, LAYERS, VOCABULARY = 32, 2, 258
NARROW_CONFIG = PUBLISHED_CONFIG | {
    "hidden_size": WIDTH,
    "text_config": {
        "model_type": "bidir_mistral",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 5000.0,
        "sliding_window": 4,
    },
    "latent_attention_config": {
        "model_type": "latent_attention",
        "num_latents_value": 6,
        "num_cross_heads": 2,
        "hidden_dim": WIDTH,
        "latent_dim": WIDTH,
        "cross_dim_head": 24,
    },
}


def published_shapes(vocabulary, width, inner, key_value, layers, latents, heads, head_width):
    """The table of section 1.4 of the fact sheet, written out."""
    shapes = {
        "embedding_model.embed_tokens.weight": (vocabulary, width),
        "embedding_model.norm.weight": (width,),
    }
    for layer in range(layers):
        prefix = f"embedding_model.layers.{layer}."
        shapes |= {prefix + f"self_attn.{name}_proj.weight": (width, width) for name in "qo"}
        shapes |= {prefix + f"self_attn.{name}_proj.weight": (key_value, width) for name in "kv"}
        shapes |= {prefix + f"mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[prefix + "mlp.down_proj.weight"] = (width, inner)
        shapes |= {prefix + f"{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes["latent_attention_model.latents"] = (latents, width)
    first, second = (f"latent_attention_model.cross_attend_blocks.{index}." for index in (0, 1))
    for norm in (first + "norm", first + "norm_context", second + "norm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes | {
        first + "fn.to_q.weight": (heads * head_width, width),
        first + "fn.to_kv.weight": (2 * heads * head_width, width),
        first + "fn.to_out.weight": (width, heads * head_width),
        second + "fn.net.0.weight": (8 * width, width),
        second + "fn.net.0.bias": (8 * width,),
        second + "fn.net.2.weight": (width, 4 * width),
        second + "fn.net.2.bias": (width,),
    }


NARROW_SHAPES = published_shapes(VOCABULARY, WIDTH, 48, 16, LAYERS, 6, 2, 24)


def write_published(folder, shapes, config=NARROW_CONFIG, tokenizer=None):
    """A folder as published: fp16 weights in shards with an index, configuration, tokenizer."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:9], names[9:21], names[21:]), start=1):
        file = f"model-{number:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    (tokenizer or make_tokenizer(with_beginning=True)).save_pretrained(folder)
    return tensors


def all_tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    return folder


def test_full_size_from_a_configuration_that_holds_only_model_types(published):
    (published / "config.json").write_text(json.dumps(PUBLISHED_CONFIG))
    text, model, append_eos = read_nv_embed_configuration(published)
    found = expected_shapes(text, model)
    assert found == published_shapes(32000, 4096, 14336, 1024, 32, 512, 8, 4096)
    assert len(found) == 304
    assert sum(math.prod(shape) for shape in found.values()) == 7_851_016_192
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"], text.sliding_window) == (
        1e-5,
        10000.0,
        None,
    )
    assert append_eos


def test_round_trip_is_bit_for_bit(published, tmp_path):
    tensors = write_published(published, NARROW_SHAPES)
    import_nv_embed(published, tmp_path / "model")
    export_nv_embed(tmp_path / "model", tmp_path / "again")
    again = all_tensors(tmp_path / "again")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == torch.float16
        assert torch.equal(again[name], tensor), name
    settings, back = (read_nv_embed_configuration(folder) for folder in (published, tmp_path / "again"))
    assert settings[0].to_dict() | {"dtype": None} == back[0].to_dict() | {"dtype": None}
    assert settings[1:] == back[1:]
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["latent_attention_config"] == NARROW_CONFIG["latent_attention_config"] | {
        "output_normalize": True
    }
    assert {key: config[key] for key in PUBLISHED_CONFIG if "config" not in key} == {
        key: value for key, value in NARROW_CONFIG.items() if "config" not in key
    }


def test_published_instructions_of_tasks_go_into_the_contract(published, tmp_path, caplog):
    write_published(published, NARROW_SHAPES)
    entries = {
        "NQ": {"query": "Find passages", "corpus": ""},
        "QuoraRetrieval": {"query": "Find duplicates", "corpus": "Find duplicates"},
        "STS12": {"text": "Compare"},
        "Odd": {"query": "Find", "corpus": "Represent"},
    }
    (published / "instructions.json").write_text(json.dumps(entries))
    import_nv_embed(published, tmp_path / "model")
    contract = Contract.load(tmp_path / "model")
    assert {name: contract.instruction_for(name) for name in contract.instructions} == {
        "NQ": "Find passages", "QuoraRetrieval": "Find duplicates", "STS12": "Compare",
    }  # fmt: skip
    assert contract.symmetric == ("QuoraRetrieval", "STS12")
    assert "the instructions of Odd are not taken over" in caplog.text
    (published / "instructions.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"instructions\.json is no table of instructions"):
        import_nv_embed(published, tmp_path / "other")


def test_the_commands_resolve_paths_in_the_workspace(published, home):
    tensors = write_published(published, NARROW_SHAPES)
    for arguments in (
        ["import-checkpoint", str(published), "model", "--max-length", "99"],
        ["export-checkpoint", "model", "again", "--layout", "nv-embed"],
    ):
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert Contract.load(home / "model").max_length == 99
    assert all_tensors(home / "again").keys() == tensors.keys()


def test_imported_model_computes_the_published_function(published, tmp_path):
    tensors = write_published(published, NARROW_SHAPES)
    import_nv_embed(published, tmp_path / "model", max_length=100)
    engine = Engine.load(tmp_path / "model", precision="fp32")
    assert (engine.contract.max_length, engine.contract.truncation) == (100, "published")
    text, _, _ = read_nv_embed_configuration(published)
    backbone, head = (
        {
            name.removeprefix(prefix): tensor.float()
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        for prefix in ("embedding_model.", "latent_attention_model.")
    )
    tokenized = engine.tokenize(["some text"], "find")
    [ids], [start] = tokenized.input_ids, tokenized.pool_starts
    wanted = nv_embed_vector(ids, start, backbone, head, text, heads=2)
    ours = torch.tensor(engine.encode(["some text"], instruction="find").vectors[0])
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


LATENTS = "latent_attention_model.latents"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shapes: shapes.pop(LATENTS), f"tensor {LATENTS} is missing"),
        (lambda shapes: shapes.update({"lm_head.weight": (2, 2)}), r"tensor lm_head\.weight is not expected"),
        (lambda shapes: shapes.update({LATENTS: (5, WIDTH)}), f"tensor {LATENTS} has another shape"),
    ],
)
def test_a_wrong_tensor_is_named(published, tmp_path, change, message):
    shapes = dict(NARROW_SHAPES)
    change(shapes)
    write_published(published, shapes)
    with pytest.raises(CheckpointError, match=message):
        import_nv_embed(published, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "instead of 'nvembed'"),
        ({"is_mask_instruction": False}, "is_mask_instruction is False"),
        ({"latent_attention_config": {"latent_dim": 16}}, "latent_dim is 16; only 32"),
        ({"latent_attention_config": {"output_normalize": False}}, "output_normalize is False"),
    ],
)
def test_another_model_is_refused(published, tmp_path, change, message):
    narrow = NARROW_CONFIG["latent_attention_config"]
    change = {key: narrow | value if isinstance(value, dict) else value for key, value in change.items()}
    write_published(published, NARROW_SHAPES, NARROW_CONFIG | change)
    with pytest.raises(CheckpointError, match=message):
        import_nv_embed(published, tmp_path / "model")


def test_damaged_folders_are_refused(published, tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        import_nv_embed(published, tmp_path / "model")
    write_published(published, NARROW_SHAPES)
    shard = published / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"00002-of-00003.* is not a readable"):
        import_nv_embed(published, tmp_path / "model")
    shard.unlink()
    with pytest.raises(CheckpointError, match="no weight file model-00002"):
        import_nv_embed(published, tmp_path / "model")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(pooling=MeanPoolingConfig()), "pooling head is 'mean'"),
        (ModelConfig(attention="causal", pooling=LatentPoolingConfig(num_latents=4)), "attention is causal"),
        (
            ModelConfig(pooling=LatentPoolingConfig(num_latents=4, feedforward_multiplier=2)),
            "feedforward_multiplier is 2",
        ),
    ],
)
def test_models_that_the_layout_cannot_hold_are_refused(tmp_path, config, message):
    embedder = EmbeddingModel(prepare_backbone(make_backbone(), config.attention), config)
    save_model(tmp_path / "model", embedder, make_tokenizer(), Contract())
    with pytest.raises(CheckpointError, match=message):
        export_nv_embed(tmp_path / "model", tmp_path / "out")


@pytest.mark.skipif(sentencepiece_file() is None, reason="mistral-common is not installed (extra `dev`)")
def test_the_published_tokenizer_is_kept_to_the_letter(published, tmp_path):
    """transformers' class for Llama tokenizers splits texts that start with a space differently."""
    tokenizer = mistral_tokenizer(tmp_path)
    text_config = NARROW_CONFIG["text_config"] | {"vocab_size": 32000}
    shapes = NARROW_SHAPES | {"embedding_model.embed_tokens.weight": (32000, WIDTH)}
    write_published(published, shapes, NARROW_CONFIG | {"text_config": text_config}, tokenizer)
    settings = json.loads((published / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
    }
    (published / "tokenizer_config.json").write_text(json.dumps(settings))
    import_nv_embed(published, tmp_path / "model")
    engine = Engine.load(tmp_path / "model", precision="fp32")
    for text in (" two", "hello  world", "3.14"):
        assert engine.tokenize([text]).input_ids == [tokenizer(text + "</s>")["input_ids"]]
