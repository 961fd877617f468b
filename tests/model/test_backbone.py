import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel

from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.model.backbone import llama_to_mistral, load_backbone
from rayembed.model.base_model import check_same_function, prepare_base_model
from rayembed.model.configuration import LoraSettings
from rayembed.model.lora import attach_lora, merge_lora
from tests.tiny import make_backbone


def make_llama(**changes):
    torch.manual_seed(1)
    settings = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_theta": 50_000.0, "rope_type": "default"},
    }
    return LlamaModel(LlamaConfig(**settings | changes)).eval()


def test_llama_converts_exactly():
    llama = make_llama()
    mistral = llama_to_mistral(llama)
    check_same_function(llama, mistral)
    assert mistral.layers[0].mlp.up_proj.weight.data_ptr() == llama.layers[0].mlp.up_proj.weight.data_ptr()
    mistral.layers[0].mlp.up_proj.weight.data = mistral.layers[0].mlp.up_proj.weight + 1e-3
    with pytest.raises(CheckpointError, match="differs"):
        check_same_function(llama, mistral)


def test_llama_with_biases_is_refused():
    with pytest.raises(CheckpointError, match="bias"):
        llama_to_mistral(make_llama(attention_bias=True))


def test_llama_folder_loads_as_mistral(tmp_path):
    llama = make_llama()
    llama.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path, layers=2)
    assert type(loaded).__name__ == "MistralModel"
    assert len(loaded.layers) == 2
    assert torch.equal(loaded.layers[1].mlp.up_proj.weight, llama.layers[1].mlp.up_proj.weight)


def test_llama_in_16_bits_keeps_its_positions_in_fp32(tmp_path):
    make_llama().save_pretrained(tmp_path)
    exact, loaded = load_backbone(tmp_path), load_backbone(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype is torch.bfloat16
    assert torch.equal(loaded.rotary_emb.inv_freq, exact.rotary_emb.inv_freq)


def test_weights_go_to_their_device_as_they_are_read(tmp_path, monkeypatch):
    class Recorded:
        @classmethod
        def from_pretrained(cls, name, **settings):
            seen.append(settings["device_map"])
            return make_backbone(), {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}

    seen = []
    make_backbone().save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.MistralModel", Recorded)
    for device in ("cpu", "cuda:1"):
        load_backbone(tmp_path, device=device)
    assert seen == [None, {"": torch.device("cuda:1")}]


def test_other_architectures_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match=r"'gpt2'.*mistral, llama, qwen2, qwen3"):
        load_backbone(tmp_path)


def test_incomplete_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_backbone(tmp_path / "nothing")
    model = make_backbone()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_backbone(tmp_path)


def test_too_many_layers(tmp_path):
    make_backbone().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="2 layers, 9"):
        load_backbone(tmp_path, layers=9)


def test_missing_tensor_is_named(tmp_path):
    make_backbone().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layers\.2\."):
        load_backbone(tmp_path)


def test_quantised_weights_are_refused_by_name(tmp_path):
    make_backbone().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"quantised \(bitsandbytes\).*the original model"):
        load_backbone(tmp_path)
    config["quantization_config"] = {"quant_method": "gguf"}  # left by transformers next to plain weights
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not hasattr(load_backbone(tmp_path).config, "quantization_config")


def _config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _weights(**changes):
    def change(folder):
        path = folder / "model.safetensors"
        save_file(load_file(path) | changes, path, metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_config(quantization_config={"load_in_8bit": True}), r"quantised \(bitsandbytes\)"),
        (_config(quantization_config={}), "is stored quantised"),
        (_config(hidden_size="32"), "cannot be read.*'hidden_size' expected int"),
        (_config(vocab_size=77), r"first is embed_tokens.weight, \(\d+, \d+\) in place of \(77, "),
        (_weights(**{"layers.0.mlp.up_proj.lora_A.weight": torch.zeros(2)}), "up_proj.lora_A.weight; merge"),
        (_weights(**{"layers.1.self_attn.q_proj.bias": torch.zeros(2)}), "for layers that cannot take them"),
        (_weights(**{"lm_head.weight": torch.zeros(2), "layers.9.mlp.up_proj.weight": torch.zeros(2)}), None),
        (lambda folder: (folder / "model.safetensors").write_text("version https"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "is an adapter"),
    ],
)  # fmt: skip
def test_folders_of_other_kinds_are_refused_by_what_they_are(tmp_path, change, message):
    make_backbone().save_pretrained(tmp_path)
    change(tmp_path)
    if message is None:
        load_backbone(tmp_path)
        return
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tmp_path)


def test_a_local_folder_is_taken_as_it_is(tmp_path, home):
    assert prepare_base_model(str(tmp_path), tmp_path / "models") == tmp_path
    assert prepare_base_model("owner/model", tmp_path / "models") == "owner/model"


def test_lora_is_on_all_seven_linears_and_merges_exactly():
    model = make_backbone()
    plain = make_backbone()
    attach_lora(model, LoraSettings(rank=2, alpha=4, dropout=0.0))
    trainable = {
        name.split(".")[-4] for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert trainable == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids)[0], plain(input_ids=ids)[0])
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        with_adapter = model(input_ids=ids)[0]
        merged = merge_lora(model)(input_ids=ids)[0]
    assert (with_adapter - plain(input_ids=ids)[0]).abs().max() > 1e-2
    torch.testing.assert_close(merged, with_adapter, atol=1e-5, rtol=1e-5)
    assert set(model.state_dict()) == set(plain.state_dict())


def test_unknown_lora_target_is_refused():
    with pytest.raises(ConfigError, match="no_such_proj"):
        attach_lora(make_backbone(), LoraSettings(target_modules=("no_such_proj",)))
