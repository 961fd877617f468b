"""A step that learns a teacher's vectors, from the recipe's loss to the gradient."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from rayembed.common.errors import CheckpointError
from rayembed.config.loading import validate_config
from rayembed.contract import Contract
from rayembed.contract.packing import pack_ids
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.plan_store import PlanReader
from rayembed.data.stream import local_batches
from rayembed.engine.engine import Engine
from rayembed.model.backbone import prepare_backbone
from rayembed.model.checkpoint import save_model
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.pooling import MeanPoolingConfig
from rayembed.training.resources import StepTimer
from rayembed.training.start import step_of
from tests.tiny import make_backbone, make_tokenizer
from tests.training.models import Unwrapped, gradients, make_embedder
from tests.training.sources import stage, stream_spec
from tests.training.spawn import run_ranks
from tests.training.stages import stage_of

STEP = 1
WEIGHT = 0.5
BUDGET = 90  # tokens of a chunk; a batch has several times as many


def save_teacher(folder, *, contract=None, new_token=None, **sizes):
    """A model of other weights and another pooling head than the student's."""
    backbone = prepare_backbone(make_backbone(seed=7, **sizes), "bidirectional")
    tokenizer = make_tokenizer()
    if new_token:
        tokenizer.add_tokens([new_token])
    embedder = EmbeddingModel(backbone, ModelConfig(pooling=MeanPoolingConfig()))
    save_model(folder, embedder, tokenizer, contract or Contract(max_length=64))


@pytest.fixture
def run(home, tiny_base):
    """A stage whose only loss is the distance from the model in the workspace's folder `teacher`."""
    losses = [{"type": "vector_distillation", "weight": WEIGHT, "teacher": "teacher"}]
    config = validate_config(
        {
            "name": "taught",
            "base_model": str(tiny_base),
            "contract": {"max_length": 64},
            "stages": [stage(batch_size=7, temperature=None, loss=losses).model_dump(mode="json")],
        },
        origin="test",
    )
    return stage_of(config, tiny_base, stream_spec(home, tiny_base, config.stages[0]), home)


def with_budget(run, budget):
    return replace(run, training=run.training.model_copy(update={"tokens_per_chunk": budget}))


def taken(run, rank=0, world_size=1):
    """Loss and gradients of one rank's step."""
    wrapped = Unwrapped(make_embedder(lora=True))
    [batch] = local_batches(run.stream, start=STEP, stop=STEP + 1, rank=rank, world_size=world_size)
    step = step_of(run, torch.device("cpu"), torch.float32)
    output = step.backward(wrapped, batch, StepTimer())
    assert (len(wrapped.boundaries) > 1) == (run.training.tokens_per_chunk is not None)
    return {"loss": output.loss.detach(), **gradients(wrapped.module)}


def averaged(rank, world_size, run):
    """The same averaged over ranks, without and with chunks."""
    found = [taken(with_budget(run, budget), rank, world_size) for budget in (None, BUDGET)]
    for results in found:
        for value in results.values():
            dist.all_reduce(value)
            value /= world_size
    return found


def reference(run, teacher):
    """2 - 2 cosine of every row's query and positive, each text read from the rows and encoded alone."""
    contract, tokenizer = run.stream.contract, load_tokenizer(run.stream.tokenizer)
    engine = Engine.load(teacher, device="cpu", precision="fp32")
    embedder = make_embedder(lora=True)
    rows = run.stream.chooser().choose(PlanReader(run.stream.plan).read(STEP))
    distances = []
    for row in rows:
        positive = row.texts[row.target], row.target[1]
        for text, instruction in ((row.query, row.instruction), positive):
            tokens = contract.tokenize(tokenizer, [text], instruction or None)
            [vector] = embedder(pack_ids(tokens.input_ids, tokens.pool_starts))
            [wanted] = engine.encode([text], instruction=instruction or None).vectors
            distances.append(2 - 2 * vector @ torch.from_numpy(wanted))
    loss = WEIGHT * torch.stack(distances).sum() / len(rows)
    loss.backward()
    return {"loss": loss.detach(), **gradients(embedder)}


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_step_equals_the_formula_over_texts_encoded_alone(run, home):
    save_teacher(home / "teacher")
    expected = reference(run, home / "teacher")
    assert expected["loss"] > 0.1
    assert any(gradient.abs().max() > 1e-3 for name, gradient in expected.items() if "lora_" in name)
    assert any(gradient.abs().max() > 1e-3 for name, gradient in expected.items() if "pooling" in name)
    check(taken(run), expected)
    check(taken(with_budget(run, BUDGET)), expected)


def test_two_ranks_together_equal_the_formula(run, home, tmp_path):
    save_teacher(home / "teacher")
    expected = reference(run, home / "teacher")
    for results in run_ranks(averaged, 2, tmp_path, run):
        for found in results:
            check(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contract": Contract(append_eos=False)}, "has append_eos False, this run True"),
        ({"new_token": "extra", "vocab_size": 259}, "has another vocabulary"),
        ({"hidden_size": 16}, "has vectors of width 16, this run's model 32; .*or use score_distillation"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(run, home, changes, message):
    save_teacher(home / "teacher", **changes)
    with pytest.raises(CheckpointError, match=message):
        step_of(run, torch.device("cpu"), torch.float32)
