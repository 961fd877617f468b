from pathlib import Path

import pytest

from rayembed.contract import Contract
from rayembed.model.backbone import prepare_backbone
from rayembed.model.checkpoint import save_model
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.pooling import MeanPoolingConfig
from tests.tiny import make_backbone, make_tokenizer


@pytest.fixture(scope="package")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Checkpoint of a tiny random model of width 32 that knows two tasks."""
    folder = tmp_path_factory.mktemp("embedding") / "model"
    embedder = EmbeddingModel(
        prepare_backbone(make_backbone(), "bidirectional"), ModelConfig(pooling=MeanPoolingConfig())
    )
    save_model(
        folder,
        embedder,
        make_tokenizer(),
        Contract(max_length=64, instructions={"questions": "Find the answer", "query": "Find"}),
    )
    return folder
