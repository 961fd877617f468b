"""The longest batch of a plan and one real step at it."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from rayembed.common.errors import ResourceError
from rayembed.config.loading import validate_config
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows
from rayembed.data.stream import local_batches
from rayembed.training import dry_run, trial
from rayembed.training.preflight import GIBIBYTE, Needs
from rayembed.training.resources import advising_on_memory
from rayembed.training.trial import longest_batch, row_characters
from tests.training.sources import stage, stream_spec, write_source
from tests.training.stages import stage_of


@pytest.fixture
def run(tmp_path, tiny_base):
    """A stage of two sources whose batches differ in length by a few tokens."""
    settings = stage(batch_size=6, steps=8)
    config = validate_config(
        {
            "name": "tried",
            "base_model": str(tiny_base),
            "contract": {"max_length": 64},
            "lora": {"rank": 2},
            "model": {"pooling": {"type": "mean"}},
            "stages": [settings.model_dump(mode="json")],
            "training": {"threads_per_worker": 1, "tokens_per_chunk": 200},
        },
        origin="test",
    )
    spec = stream_spec(tmp_path, tiny_base, config.stages[0])
    return stage_of(config, tiny_base, spec, tmp_path)


def test_the_longest_batch_has_the_most_tokens_of_the_plan(run):
    tokens = [batch.packed.num_tokens for batch in local_batches(run.stream, start=0, stop=8)]
    assert len(set(tokens)) > 1
    whole = longest_batch(run.stream, workers=1)
    assert whole.packed.num_tokens == max(tokens)
    half = longest_batch(run.stream, workers=2)
    assert half.num_queries == 3
    assert whole.packed.num_tokens / 3 < half.packed.num_tokens < whole.packed.num_tokens
    assert half.allowed_QK.shape == (3, sum(half.document_counts))


def test_characters_of_a_row_are_those_of_its_texts(run):
    rows = PreparedRows.open(run.stream.sources[1])
    entry, contract = run.stream.blend[1], run.stream.contract
    [values] = rows.row(4).to_pylist()
    texts = [values["query"], values["positives"][0], *values["negatives"]]
    prefix = len(contract.prefix("Sort"))
    assert row_characters(rows, entry, contract)[4] == sum(len(text) + prefix for text in texts)
    short = contract.model_copy(update={"max_length": 2})
    assert row_characters(rows, entry, short)[4] == 4 * 8
    none = entry.model_copy(update={"negatives_per_query": 0})
    assert row_characters(rows, none, short)[4] == 2 * 8
    assert PlanReader(run.stream.plan).steps == 8
    assert np.isfinite(row_characters(rows, entry, contract)).all()


def test_a_rows_own_instruction_counts_in_its_characters(run, tmp_path):
    entry, contract = run.stream.blend[1], run.stream.contract
    own, plain = (
        row_characters(PreparedRows.open(write_source(tmp_path / name, instructions=texts)), entry, contract)
        for name, texts in (("own.arrow", ("Much longer than the other", None)), ("plain.arrow", (None,)))
    )
    longer = len("Much longer than the other") - len("Sort")
    assert entry.symmetric, "so query, positive and two negatives carry it"
    np.testing.assert_array_equal((own - plain)[:4], [4 * longer, 0, 4 * longer, 0])


def test_a_step_is_taken_in_a_process_of_its_own(run, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    batch = longest_batch(run.stream, workers=1)
    tried = trial.try_step(run, batch)
    assert (tried.step, tried.tokens) == (batch.step, batch.packed.num_tokens)
    assert tried.seconds > 0
    assert GIBIBYTE / 10 < tried.memory < 4 * GIBIBYTE


def die(run, batch):
    os._exit(9)


def test_a_step_that_is_killed_is_an_error_with_a_budget(run, monkeypatch):
    monkeypatch.setattr(trial, "_step", die)
    batch = longest_batch(run.stream, workers=1)
    with pytest.raises(ResourceError, match=r"was killed, .*set training.tokens_per_chunk to 100 or less"):
        trial.try_step(run, batch)


def test_a_step_without_memory_on_the_gpu_is_an_error_with_a_budget(run):
    batch = longest_batch(run.stream, workers=1)
    tokens = f"{batch.packed.num_tokens:,} tokens"
    said = rf"^stage test: step 3 with {tokens} ran out .*tokens_per_chunk to 100 or less"
    with (
        pytest.raises(ResourceError, match=said),
        advising_on_memory("stage test: step 3", run.training, batch),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_a_step_that_cannot_fit_is_not_tried(run, monkeypatch):
    monkeypatch.setattr(dry_run, "try_step", lambda *_: pytest.fail("was tried"))
    shared = run.training.model_copy(update={"zero_stage": 3, "workers": 2})
    said = dry_run.tried(replace(run, training=shared), Needs(memory=0, disk=0))
    assert "no step was tried, as ZeRO 3 shares the weights among 2 workers" in said
    monkeypatch.setattr(dry_run.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**20}))
    assert "no step was tried, it needs more than 1.0 GiB" in dry_run.tried(run, Needs(2**30, disk=0))
