"""The longest batch of a plan and one real step at it."""

import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import ray
import torch

from rayembed.common.errors import ResourceError
from rayembed.common.ray_cluster import ClusterGpus, connect
from rayembed.config.loading import validate_config
from rayembed.contract.packing import pack_ids
from rayembed.data.classes import Classes
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows
from rayembed.data.stream import local_batches
from rayembed.records.schema import pair_row, to_table
from rayembed.training import dry_run, trial
from rayembed.training.preflight import GIBIBYTE, memory_of_worker
from rayembed.training.resources import advising_on_memory
from rayembed.training.run_folder import CHOICE_FILE
from rayembed.training.trial import longest_batch, row_characters
from tests.tiny import make_backbone, make_tokenizer
from tests.training.recipes import tiny_recipe as recipe
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
    [values] = rows.take(np.array([4]), ["query", "positives", "negatives"])
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
        for name, texts in (("own.json", ("Much longer than the other", None)), ("plain.json", (None,)))
    )
    longer = len("Much longer than the other") - len("Sort")
    assert entry.symmetric, "so query, positive and two negatives carry it"
    np.testing.assert_array_equal((own - plain)[:4], [4 * longer, 0, 4 * longer, 0])


@pytest.mark.parametrize(("class_texts", "documents"), [(None, 4 * 3.5), (("good", "bad"), 2 * 3.5)])
def test_a_labelled_row_counts_documents_of_mean_length(run, class_texts, documents):
    texts = ["abc", "abcd", "ab", "abcde"]
    rows = [pair_row(text, [], [], dataset="d", task_type="sts", cluster="c") for text in texts]
    classes = Classes(np.zeros(4, np.int32), np.arange(4), np.array([0, 4]), class_texts)
    prepared = PreparedRows(to_table(rows, "pairs").to_batches(), classes)
    entry = run.stream.blend[1].model_copy(
        update={"negatives_per_query": 3 if class_texts is None else 1, "symmetric": False, "instruction": ""}
    )
    found = row_characters(prepared, entry, run.stream.contract)
    np.testing.assert_allclose(found, np.array([3, 4, 2, 5]) + documents)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        connect(num_cpus=2)
        yield
        ray.shutdown()


@pytest.mark.ray
def test_a_step_is_taken_in_a_process_of_its_own(run, cluster):
    batch = longest_batch(run.stream, workers=1)
    tried = trial.try_step(run, batch)
    assert (tried.step, tried.tokens) == (batch.step, batch.packed.num_tokens)
    assert (tried.tokens_per_chunk, tried.activation_checkpointing) == (200, False)
    assert tried.seconds > 0
    assert GIBIBYTE / 10 < tried.memory < 4 * GIBIBYTE


@pytest.mark.ray
def test_auto_takes_the_fastest_of_what_fits_and_writes_it_down(run, cluster, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(trial, "_CHUNKS", (200, 100))
    auto = {"tokens_per_chunk": "auto", "activation_checkpointing": "auto"}
    wanted = replace(run, training=run.training.model_copy(update=auto))
    chosen = trial.decided(wanted, tmp_path).training
    assert "are the fastest that fit" in caplog.text
    note = json.loads((tmp_path / CHOICE_FILE).read_text())
    assert len(note["tried"]) == 4, "two sizes of chunks with checkpointing and two without"
    assert note["chosen"]["seconds"] == min(tried["seconds"] for tried in note["tried"])
    assert chosen.tokens_per_chunk == note["chosen"]["tokens_per_chunk"] in (None, 200)
    monkeypatch.setattr(trial, "_measured", lambda *_: pytest.fail("a resumed stage keeps its settings"))
    assert trial.decided(wanted, tmp_path).training == chosen
    assert trial.decided(run, tmp_path) is run


def test_on_a_cpu_auto_tries_only_what_fits_on_paper(run, monkeypatch):
    auto = replace(run, training=run.training.model_copy(update={"tokens_per_chunk": "auto"}))
    sizes = [tried.tokens_per_chunk for tried in trial._candidates(auto, 20_000, False)]
    assert sizes == [None, 16_384, 8_192, 4_096]
    whole = memory_of_worker(
        run.model,
        run.training.model_copy(update={"tokens_per_chunk": None}),
        device="cpu",
        tokens=20_000,
    ).total
    monkeypatch.setattr(
        trial.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0.99 * whole})
    )
    assert None not in [tried.tokens_per_chunk for tried in trial._candidates(auto, 20_000, False)]


def test_one_model_serves_all_sizes_of_chunks(run, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    batch = longest_batch(run.stream, workers=1)
    sizes = (None, 200, 100)
    settings = [run.training.model_copy(update={"tokens_per_chunk": size}) for size in sizes]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        trials = pool.submit(trial._steps, run, batch, settings).result()
    assert [tried.tokens_per_chunk for tried in trials] == [None, 200], "two sizes that fit are enough"
    assert all(tried.step == batch.step and tried.seconds > 0 for tried in trials)


def test_the_model_of_a_trial_has_memory_for_the_sums_of_chunks(run, monkeypatch):
    made_for = []

    def started(stage, *_, **__):
        made_for.append(stage.training.tokens_per_chunk)
        raise ResourceError("that is enough")

    monkeypatch.setattr(trial, "start_model", started)
    settings = [run.training.model_copy(update={"tokens_per_chunk": size}) for size in (None, 200)]
    with pytest.raises(ResourceError, match="that is enough"):
        trial._steps(run, longest_batch(run.stream, workers=1), settings)
    assert made_for == [200]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"tokens_per_chunk": 1500}, {"activation_checkpointing": True}])
def test_the_memory_on_paper_is_that_of_a_real_step(tmp_path, monkeypatch, settings):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    base = tmp_path / "base"
    make_backbone(hidden_size=256, intermediate_size=512, num_hidden_layers=6).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    config = recipe(
        base,
        training={"precision": "fp32", "threads_per_worker": 1} | settings,
        model={"pooling": {"type": "latent", "num_latents": 32, "num_heads": 4, "head_width": 64}},
        stages=[stage(batch_size=8).model_dump(mode="json")],
    )
    spec = stream_spec(tmp_path, base, config.stages[0])
    batch = longest_batch(spec, workers=1)
    texts = len(batch.packed.order_N)
    length = 6_000 // texts
    batch = replace(batch, packed=pack_ids([[5] * length] * texts, [1] * texts))
    run = stage_of(config, base, spec, tmp_path)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        [tried] = pool.submit(trial._steps, run, batch, [run.training]).result()
    paper = memory_of_worker(run.model, run.training, device="cpu", tokens=batch.packed.num_tokens)
    print(f"{settings}: {tried.memory / GIBIBYTE:.2f} GiB measured, {paper}")
    assert 0.7 < paper.total / tried.memory < 1.5


def test_a_step_is_tried_on_the_gpu_that_training_would_take(run, monkeypatch):
    asked = {}
    monkeypatch.setattr(trial, "run_apart", lambda *_, **options: asked.update(options) or [])
    wanted = {"device": "cuda", "accelerator_type": "H100", "worker_labels": {"market": "!spot"}}
    batch = longest_batch(run.stream, workers=1)
    trial._tried(run, batch, [run.training.model_copy(update=wanted)])
    assert (asked["gpus"], asked["accelerator_type"]) == (1, "H100")
    assert asked["labels"] == {"market": "!spot"}


def die(run, batch, settings):
    os._exit(9)


@pytest.mark.ray
def test_a_step_that_is_killed_is_an_error_with_a_budget(run, cluster, monkeypatch):
    monkeypatch.setattr(trial, "_steps", die)
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


def test_a_step_that_cannot_be_taken_is_not_tried(run, monkeypatch):
    monkeypatch.setattr(dry_run, "try_step", lambda *_: pytest.fail("was tried"))
    monkeypatch.setattr(dry_run, "cluster_gpus", lambda _: ClusterGpus(0, 0))
    monkeypatch.setattr(dry_run, "connect", lambda: None)
    shared = run.training.model_copy(update={"zero_stage": 3, "workers": 2})
    *_, paper, said = dry_run.tried(replace(run, training=shared))
    assert "memory of a worker on paper: " in paper
    assert "no step was tried, as ZeRO 3 shares the weights among 2 workers" in said
    update = {"device": "cuda", "tokens_per_chunk": "auto"}
    *_, most, least, said = dry_run.tried(replace(run, training=run.training.model_copy(update=update)))
    assert "on paper, tokens_per_chunk None: " in most
    assert "on paper, tokens_per_chunk 4096: " in least
    assert said == "no step was tried, no GPU is here"
