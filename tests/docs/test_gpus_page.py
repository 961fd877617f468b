"""Memory in docs/gpus.md is what the code counts for the shape of Mistral-7B."""

import re
from pathlib import Path

import pytest
import transformers

from rayembed.config.loading import load_config
from rayembed.training.model import ModelSpec
from rayembed.training.preflight import GIBIBYTE, memory_of_worker

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 65_536  # tokens of a batch, more than a chunk
NF4 = ["lora.quantization=nf4"]
PUBLISHED = ["model.pooling={type: latent, num_latents: 512, num_heads: 8}", "training.optimizer=adamw_8bit"]
ROWS = [  # recipe and settings of each row of the table, from the top
    ("nv-embed-v2-1x24gb", []),
    ("nv-embed-v2-1x24gb", NF4),
    ("nv-embed-v2-1x24gb", NF4 + PUBLISHED),
    ("nv-embed-v2-1x80gb", []),
    ("nv-embed-v2-1x80gb", []),
    ("nv-embed-v2-8x80gb", []),
    ("nv-embed-v2-8x80gb", []),
    ("nv-embed-v2-64x80gb", []),
]


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistral")
    transformers.MistralConfig(sliding_window=None).save_pretrained(folder)  # whose sizes are the defaults
    return folder


def test_the_tables_memory_is_counted(mistral):
    page = (ROOT / "docs" / "gpus.md").read_text()
    rows = re.findall(r"\| ([\d,]+) \| (yes|no) \| ([\d.]+) GiB", page)
    for (recipe, settings), (chunk, checkpointing, written) in zip(ROWS, rows, strict=True):
        config = load_config(recipe, settings)
        training = config.training.model_copy(
            update={
                "tokens_per_chunk": int(chunk.replace(",", "")),
                "activation_checkpointing": checkpointing == "yes",
            }
        )
        model = ModelSpec.of(config, mistral)
        counted = memory_of_worker(model, training, device="cuda", tokens=LONGEST).total / GIBIBYTE
        assert f"{counted:.1f}" == written, f"{recipe} {settings} {chunk}"
