"""Writing a merged backbone part by part gives what merging a whole model would."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralForCausalLM

from rayembed.common.errors import CheckpointError
from rayembed.model import merging
from rayembed.model.backbone import load_backbone
from rayembed.model.configuration import LoraSettings, ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.lora import attach_lora, merge_lora
from rayembed.model.merging import write_merged
from rayembed.model.pooling import MeanPoolingConfig
from tests.tiny import make_backbone

LORA = LoraSettings(rank=2, alpha=8)


@pytest.fixture
def base(tmp_path):
    """With a language-model head, which a backbone leaves out."""
    torch.manual_seed(1)
    MistralForCausalLM(make_backbone().config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained_model(base, lora: LoraSettings | None, layers=None):
    backbone = load_backbone(base, layers=layers)
    if lora:
        attach_lora(backbone, lora)
    model = EmbeddingModel(backbone, ModelConfig(pooling=MeanPoolingConfig()))
    generator = torch.Generator().manual_seed(2)
    trained = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator)
            trained[name] = parameter.detach().clone()
    return model, trained


def assert_same_folder(folder, whole):
    ours, theirs = load_backbone(folder).state_dict(), load_backbone(whole).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-6)
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, whole)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("lora", [LORA, None])
@pytest.mark.parametrize("part", [1000, 2**31])
def test_parts_hold_what_a_whole_model_would(base, tmp_path, monkeypatch, lora, part):
    model, trained = trained_model(base, lora)
    merge_lora(model.backbone).save_pretrained(tmp_path / "whole")
    monkeypatch.setattr(merging, "_PART_BYTES", part)
    write_merged(base, tmp_path / "parts", trained, dtype=torch.float32, lora=lora)
    assert_same_folder(tmp_path / "parts", tmp_path / "whole")
    assert (len(list((tmp_path / "parts").glob("*.safetensors"))) > 1) == (part == 1000)


def test_fewer_layers_and_a_llama_base(tmp_path):
    config = make_backbone().config
    same = {key: getattr(config, key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
    same |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**same)).save_pretrained(tmp_path / "llama")
    load_backbone(tmp_path / "llama", layers=1).save_pretrained(tmp_path / "whole")
    write_merged(tmp_path / "llama", tmp_path / "parts", {}, dtype=torch.float32, layers=1)
    assert_same_folder(tmp_path / "parts", tmp_path / "whole")


def test_sums_are_taken_in_fp32_and_written_in_the_wanted_format(base, tmp_path):
    model, trained = trained_model(base, LORA)
    merge_lora(model.backbone)
    write_merged(base, tmp_path / "parts", trained, dtype=torch.bfloat16, lora=LORA)
    written = load_backbone(tmp_path / "parts", dtype="auto")
    name = "layers.0.mlp.up_proj.weight"
    exact = model.backbone.get_parameter(name).bfloat16()
    assert written.get_parameter(name).dtype is torch.bfloat16
    torch.testing.assert_close(written.get_parameter(name), exact, rtol=1e-2, atol=0)


def test_a_base_that_lacks_a_tensor_is_refused(base, tmp_path):
    (base / "config.json").write_text(
        (base / "config.json").read_text().replace('_layers": 2', '_layers": 3')
    )
    with pytest.raises(CheckpointError, match=r"lacks 9 tensors, the first is layers\.2\.input_layernorm"):
        write_merged(base, tmp_path / "parts", {}, dtype=torch.float32)
