"""Rounds of mining and a distillation with real models, tiny ones, on a local Ray."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification

import rayembed
from rayembed.cli.mining_rounds import mining_rounds
from rayembed.model.checkpoint import read_manifest
from tests.tiny import make_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(1200)]

WORDS = ("sun", "rain", "snow", "wind", "fog", "hail", "dew", "ice")


def write_cross_encoder(folder):
    torch.manual_seed(0)
    make_tokenizer().save_pretrained(folder)
    config = BertConfig(
        vocab_size=258, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)


def test_rounds_and_a_distillation_from_a_cross_encoder_train_one_model_from_the_next(home, tiny_base):
    rows = [{"query": f"{word} {n}", "positive": f"about {word} {n}"} for n in range(6) for word in WORDS]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_cross_encoder(home / "judge")
    data = {"sources": {"pairs": {"path": "pairs.jsonl"}}}
    stage = {
        "name": "retrieval",
        "steps": 3,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "temperature": 0.1,
        "blend": [{"source": "pairs", "weight": 1, "in_batch_negatives": True, "negatives_per_query": 2}],
    }
    train = {
        "name": "small",
        "base_model": str(tiny_base),
        "contract": {"max_length": 64},
        "model": {"pooling": {"type": "mean"}},
        "lora": {"rank": 2, "alpha": 4},
        "data": data,
        "stages": [stage],
        "training": {"cpus_per_worker": 0.5, "threads_per_worker": 1},
    }
    learning = {key: value for key, value in stage.items() if key != "temperature"} | {
        "loss": [{"type": "score_distillation"}]
    }
    mine = {
        "data": data,
        "teachers": {"words": {"kind": "bm25"}},
        "sources": [{"source": "pairs", "top_k": 12, "negatives_per_query": 2}],
        "rescoring": {"kind": "cross-encoder", "path": "judge", "share": 1.0},
        "actors": 1,
    }
    model = mining_rounds(train, mine, 2, True, train | {"name": "learned", "stages": [learning]})
    assert model == home / "runs/learned-distilled/model"
    folders = [home / "runs" / name for name in ("small-round-1", "small-round-2", "learned-distilled")]
    digests = [read_manifest(folder / "model")["digest"] for folder in folders]
    assert len(set(digests)) == 3
    assert all(read_manifest(folder / "model")["provenance"]["sources"] == ["pairs"] for folder in folders)
    mined = [pq.read_table(home / f"mined/{folder.name}/pairs/train.parquet") for folder in folders]
    assert all(table.num_rows == len(rows) for table in mined)
    judge = CrossEncoder(str(home / "judge"), device="cpu")
    for row in mined[2].to_pylist()[:4]:
        pairs = [(row["query"], text) for text in (*row["positives"], *row["negatives"])]
        expected = judge.predict(pairs, activation_fn=torch.nn.Identity()).tolist()
        seen = [score for score in row["teacher_scores"] if score == score]
        assert seen == pytest.approx(expected[: len(seen)], abs=1e-5)  # random fills come last, unseen
    losses = [json.loads(line)["loss"] for line in (folders[2] / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3
    assert all(torch.isfinite(torch.tensor(losses)))
    assert rayembed.Embedder.load(model).encode(["sun 1"]).shape == (1, 32)
