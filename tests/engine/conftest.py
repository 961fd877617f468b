import pytest
import torch

from rayembed.contract import Contract
from rayembed.model.backbone import prepare_backbone
from rayembed.model.checkpoint import save_model
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.pooling import LatentPoolingConfig
from tests.tiny import make_backbone, make_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "model"
    config = ModelConfig(
        pooling=LatentPoolingConfig(num_latents=4, num_heads=2, head_width=8, init="published")
    )
    torch.manual_seed(0)
    embedder = EmbeddingModel(prepare_backbone(make_backbone(), "bidirectional"), config)
    save_model(folder, embedder, make_tokenizer(), Contract(max_length=64))
    return folder
