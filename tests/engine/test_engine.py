import json

import numpy as np
import pytest
import torch

from rayembed.common.errors import CheckpointError, RequestError
from rayembed.engine.engine import Engine, row_multiple
from tests.host_waits import RefuseHostWaits

TEXTS = ["a", "some longer text here", "b c", "some longer text here", "1 2 3", "x" * 300]


@pytest.fixture(scope="module")
def engine(checkpoint):
    return Engine.load(checkpoint, precision="fp32", token_budget=100)


def test_a_vector_is_the_same_alone_in_any_batch_and_in_any_order(engine):
    together = engine.encode(TEXTS).vectors
    backwards = engine.encode(TEXTS[::-1]).vectors[::-1]
    alone = np.concatenate([engine.encode([text]).vectors for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, backwards, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_repeated_texts_are_computed_once_and_counts_are_reported(engine, monkeypatch):
    seen = []
    original = engine.encode_tokens
    monkeypatch.setattr(
        engine, "encode_tokens", lambda tokens, **kw: seen.append(len(tokens)) or original(tokens, **kw)
    )
    encoded = engine.encode(TEXTS)
    assert seen == [5]
    np.testing.assert_array_equal(encoded.vectors[1], encoded.vectors[3])
    assert encoded.token_counts == [2, 22, 4, 22, 6, 64]
    assert encoded.truncated == [False] * 5 + [True]


def test_dimensions_cut_and_renormalise(engine):
    full = engine.encode(TEXTS).vectors
    cut = engine.encode(TEXTS, dimensions=8).vectors
    np.testing.assert_allclose(
        cut, full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True), atol=1e-6
    )
    for dimensions in (0, 33):
        with pytest.raises(RequestError, match="between 1 and 32"):
            engine.encode(TEXTS, dimensions=dimensions)


def test_batches_hold_the_token_budget(engine):
    lengths = [2, 22, 4, 6, 64, 90, 200]
    batches = list(engine._batches(lengths))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[position] for position in batch) <= engine.token_budget


def test_a_pass_does_not_wait_for_the_device(engine):
    [(_, batch)] = engine.packed_batches(engine.tokenize(["some text", "another one"], "Find"))
    with RefuseHostWaits():
        engine.forward(batch)


def test_loading_makes_no_weights_up_that_are_replaced_at_once(checkpoint, monkeypatch):
    made, reset = [], torch.nn.Linear.reset_parameters
    monkeypatch.setattr(
        torch.nn.Linear, "reset_parameters", lambda self: made.append(self.weight.device.type) or reset(self)
    )
    engine = Engine.load(checkpoint, precision="fp32")
    assert set(made) == {"meta"}
    assert {parameter.device.type for parameter in engine._embedder.parameters()} == {"cpu"}


def test_nothing_to_embed(engine):
    assert engine.encode([]).vectors.shape == (0, 32)


def test_round_trip_keeps_vectors_and_digest(checkpoint, engine):
    again = Engine.load(checkpoint, precision="fp32")
    assert again.digest == engine.digest
    np.testing.assert_allclose(again.encode(TEXTS).vectors, engine.encode(TEXTS).vectors, atol=1e-5)


def test_damaged_checkpoints_are_refused(checkpoint, tmp_path):
    import shutil

    with pytest.raises(CheckpointError, match=r"no rayembed\.json"):
        Engine.load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    head = broken / "pooling" / "model.safetensors"
    head.write_bytes(head.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="instead of"):
        Engine.load(broken)
    head.unlink()
    with pytest.raises(CheckpointError, match=r"pooling/model\.safetensors is missing"):
        Engine.load(broken)


def test_another_head_shape_is_named(checkpoint, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    manifest = json.loads((other / "rayembed.json").read_text())
    manifest["model"]["pooling"]["num_latents"] = 5
    (other / "rayembed.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="latents has another shape"):
        Engine.load(other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "format version None"),
        ("{}".encode("utf-16-be"), "format version None"),
        (b"\xff{", "is not valid JSON"),
        (b"", "is not valid JSON"),
    ],
)
def test_a_damaged_manifest_ends_in_one_line(tmp_path, content, message):
    (tmp_path / "rayembed.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Engine.load(tmp_path)


def test_rows_are_padded_by_an_eighth_at_most_to_few_lengths():
    padded = {tokens: -(-tokens // row_multiple(tokens)) * row_multiple(tokens) for tokens in range(1, 4097)}
    assert all(length - tokens < max(16, tokens / 8) for tokens, length in padded.items())
    assert len(set(padded.values())) < 64
