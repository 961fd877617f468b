"""Padded graphs have the vectors of the packed pass, in torch and in the runtimes that load them."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from typer.testing import CliRunner

from rayembed.cli.main import app
from rayembed.common.errors import ResourceError
from rayembed.contract import Contract
from rayembed.contract.packing import pack_ids
from rayembed.engine.engine import Engine
from rayembed.model.backbone import load_backbone, prepare_backbone
from rayembed.model.checkpoint import save_model
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.export import graph
from rayembed.model.pooling import (
    ClsPoolingConfig,
    EosPoolingConfig,
    LatentPoolingConfig,
    MeanPoolingConfig,
    MultiLayerPoolingConfig,
    SelfAttentionPoolingConfig,
    WeightedMeanPoolingConfig,
)
from tests.model.test_families import ENCODER_FAMILIES, FAMILIES, save_random
from tests.tiny import make_backbone, make_tokenizer

LATENT = LatentPoolingConfig(num_latents=4, num_heads=2, head_width=8, init="published")
HEADS = [
    LATENT,
    LatentPoolingConfig(num_latents=64, num_heads=2, head_width=8, init="published"),  # never folded
    SelfAttentionPoolingConfig(num_heads=2, head_width=8, init="published"),
    MultiLayerPoolingConfig(num_latents=4, num_heads=2, head_width=8),
    MeanPoolingConfig(),
    WeightedMeanPoolingConfig(),
    EosPoolingConfig(),
    ClsPoolingConfig(),
]
CONTRACT = Contract(max_length=32, instructions={"query": "find", "similar": "match"}, symmetric=("similar",))
TEXTS = ["a", "some longer text here", "3 things"]


@pytest.mark.parametrize("family", [*FAMILIES, *ENCODER_FAMILIES])
@torch.inference_mode()
def test_padding_changes_no_vector(family, tmp_path):
    save_random(*(FAMILIES | ENCODER_FAMILIES)[family], tmp_path)
    texts, unpooled = [[5, 6, 7, 8, 9, 10, 11, 12], [13], [14, 15, 16]], [2, 0, 1]
    padded = torch.zeros(3, 8, dtype=torch.long)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    for attention in ("bidirectional", "causal") if family in FAMILIES else ("bidirectional",):
        backbone = load_backbone(tmp_path, attention=attention)
        for head in HEADS:
            torch.manual_seed(0)
            model = EmbeddingModel(backbone, ModelConfig(pooling=head)).eval()
            vectors = graph.PaddedModel(model)(padded, padded.sign(), torch.tensor(unpooled))
            torch.testing.assert_close(vectors, model(pack_ids(texts, unpooled)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", HEADS[1:], ids=lambda head: head.type)  # runtimes have the first
@torch.no_grad()
def test_number_and_length_of_texts_are_free_under_every_head(head):
    torch.manual_seed(0)
    backbone = prepare_backbone(make_backbone(num_hidden_layers=1), "bidirectional")
    model = EmbeddingModel(backbone, ModelConfig(pooling=head)).eval().requires_grad_(False)
    program = graph.traced(model, with_instruction=True).module()
    for length, unpooled in ((9, [2, 0, 1, 0]), (5, [0, 0, 0])):  # in the second nothing is left out
        ids = torch.arange(5, 5 + length * len(unpooled)).view(-1, length)
        vectors = program(ids, torch.ones_like(ids), torch.tensor(unpooled))
        torch.testing.assert_close(vectors, model(pack_ids(ids.tolist(), unpooled)), atol=1e-5, rtol=0)


def in_onnxruntime(folder):
    session = pytest.importorskip("onnxruntime").InferenceSession(folder / "model.onnx")
    return lambda inputs: session.run(None, inputs)[0]


def in_openvino(folder):
    openvino = pytest.importorskip("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    return lambda inputs: compiled(inputs)[0]


@pytest.mark.parametrize(
    ("layout", "family", "head", "pools_instruction"),
    [
        ("onnx", "qwen3", LATENT, False),
        ("onnx", "modernbert", MeanPoolingConfig(), True),
        ("openvino", "mpnet", LATENT, False),
    ],
)
def test_an_export_has_the_vectors_of_the_engine_in_its_runtime(
    layout, family, head, pools_instruction, tmp_path
):
    for package in ("onnx", "onnxscript", "onnxruntime" if layout == "onnx" else layout):
        pytest.importorskip(package)
    save_random(*(FAMILIES | ENCODER_FAMILIES)[family], tmp_path / "base")
    backbone = load_backbone(tmp_path / "base", layers=2)
    contract = CONTRACT.model_copy(update={"pool_instruction": pools_instruction})
    torch.manual_seed(0)
    embedder = EmbeddingModel(backbone, ModelConfig(pooling=head)).eval()
    save_model(tmp_path / "model", embedder, make_tokenizer(), contract)
    folder = tmp_path / "exported"
    arguments = ["export-checkpoint", tmp_path / "model", folder, "--layout", layout]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    engine = Engine.load(tmp_path / "model", precision="fp32", backend="torch")
    compute = {"onnx": in_onnxruntime, "openvino": in_openvino}[layout](folder)
    prompts = json.loads((folder / "prompts.json").read_text())
    assert set(prompts) == {"query", "document", "similar", "similar-document"}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for name, instruction in (("document", None), ("query", "find"), ("similar-document", "match")):
        for texts in (TEXTS, TEXTS[:1], ["x" * 100, *TEXTS, "y"]):  # the long one is cut
            encoded = tokenizer.encode_batch([prompts[name]["text"] + text for text in texts])
            inputs = {
                "input_ids": np.array([text.ids for text in encoded]),
                "attention_mask": np.array([text.attention_mask for text in encoded]),
            }
            if not pools_instruction:
                inputs["instruction_tokens"] = np.full(len(texts), prompts[name]["instruction_tokens"])
            expected = engine.encode(texts, instruction=instruction).vectors
            np.testing.assert_allclose(compute(inputs), expected, atol=1e-4)


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(graph, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ResourceError, match=r'onnxscript must be installed: pip install "rayembed\[onnx'):
        graph.export_graph(tmp_path, tmp_path / "out", "onnx")
