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
from rayembed.model.base_model import import_sentence_transformers
from rayembed.model.checkpoint import load_model, save_model
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.pooling import MeanPoolingConfig
from rayembed.training.distillation import other_reader, with_teacher
from rayembed.training.handover import FinishedStage
from rayembed.training.model import trainable_weights
from rayembed.training.resources import StepTimer
from rayembed.training.start import start_model, step_of
from tests.packaged import PACKAGES, published
from tests.tiny import make_backbone, make_tokenizer
from tests.training.models import Unwrapped, gradients, make_embedder
from tests.training.sources import stage, stream_spec
from tests.training.spawn import run_ranks
from tests.training.stages import stage_of
from tests.training.test_handover import save

STEP = 1
WEIGHT = 0.5
BATCH = pack_ids([[3, 4, 5, 6], [7, 8], [9]], [0, 0, 0])
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


def student(run):
    return with_teacher(make_embedder(lora=True), run.settings, run.seed)


def with_reader(run):
    """The run as preparing makes it: its lanes have the teacher's tokens where it reads otherwise."""
    stream = run.stream
    teacher = other_reader(run.settings, stream.contract, stream.tokenizer)
    return replace(run, stream=replace(stream, teacher=teacher))


def taken(run, rank=0, world_size=1):
    """Loss and gradients of one rank's step."""
    wrapped = Unwrapped(student(run))
    [batch] = local_batches(run.stream, start=STEP, stop=STEP + 1, rank=rank, world_size=world_size)
    step = step_of(run, torch.device("cpu"))
    output = step.backward(wrapped, batch, StepTimer())
    assert (len(wrapped.boundaries) > 1) == (run.training.tokens_per_chunk is not None)
    return {"loss": output.loss.detach(), **gradients(wrapped.module)}


def averaged(rank, world_size, runs):
    """The same averaged over ranks: of each run without and with chunks."""
    found = [taken(with_budget(run, budget), rank, world_size) for run in runs for budget in (None, BUDGET)]
    for results in found:
        for value in results.values():
            dist.all_reduce(value)
            value /= world_size
    return found


def reference(run, teacher):
    """2 - 2 cosine of every row's query and positive, each text read from the rows and encoded alone."""
    contract, tokenizer = run.stream.contract, load_tokenizer(run.stream.tokenizer)
    engine = Engine.load(teacher, device="cpu", precision="fp32")
    embedder, prompts = student(run), engine.contract.prompts
    width = 32 if embedder.projection else 0
    rows = run.stream.chooser().choose(PlanReader(run.stream.plan).read(STEP))
    distances = []
    for row in rows:
        positive = row.texts[row.target], row.target[1]
        for side, (text, instruction) in enumerate(((row.query, row.instruction), positive)):
            tokens = contract.tokenize(tokenizer, [text], instruction or None)
            [vector] = embedder(pack_ids(tokens.input_ids, tokens.pool_starts))
            heard = prompts[side] if prompts else instruction or None
            [wanted] = engine.encode([text], instruction=heard).vectors
            distances.append(2 - 2 * vector[width:] @ torch.from_numpy(wanted))
    loss = WEIGHT * torch.stack(distances).sum() / len(rows)
    loss.backward()
    return {"loss": loss.detach(), **gradients(embedder)}


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


PROMPTS = {"instruction_template": "{instruction}", "instructions": {"query": "query: ", "document": "p: "}}


@pytest.mark.parametrize(
    ("changes", "reads_otherwise"),
    [
        ({}, False),
        ({"hidden_size": 16}, False),
        ({"contract": Contract(max_length=40)}, True),
        ({"contract": Contract(append_eos=False, max_length=25)}, True),
        ({"new_token": "ab", "vocab_size": 259, "hidden_size": 48, "contract": Contract(**PROMPTS)}, True),
    ],
    ids=["alike", "width", "length", "contract", "prompts, vocabulary and width"],
)
def test_a_step_equals_the_formula_over_texts_encoded_alone(run, home, changes, reads_otherwise):
    save_teacher(home / "teacher", **changes)
    run = with_reader(run)
    assert bool(run.stream.teacher) == reads_otherwise
    expected = reference(run, home / "teacher")
    assert expected["loss"] > 0.1
    assert any(gradient.abs().max() > 1e-3 for name, gradient in expected.items() if "lora_" in name)
    assert any(gradient.abs().max() > 1e-3 for name, gradient in expected.items() if "pooling" in name)
    assert ("projection.vectors.weight" in expected) == ("hidden_size" in changes)
    check(taken(run), expected)
    check(taken(with_budget(run, BUDGET)), expected)


@pytest.mark.parametrize("name", PACKAGES)
def test_published_models_teach(run, home, name):
    import_sentence_transformers(published(name, home / "files"), home / "teacher")
    run = with_reader(run)
    assert run.stream.teacher
    expected = reference(run, home / "teacher")
    assert expected["projection.vectors.weight"].abs().max() > 1e-3
    check(taken(with_budget(run, BUDGET)), expected)


def test_a_folder_that_is_no_checkpoint_is_refused(run, home):
    (home / "teacher").mkdir()
    with pytest.raises(CheckpointError, match=r"teacher has no contract\.json"):
        with_reader(run)


def test_the_export_leaves_the_projection_out(run, home):
    save_teacher(home / "teacher", hidden_size=16)
    model = with_teacher(run.model.build(torch.float32), run.settings, run.seed)
    weights = trainable_weights(model)
    assert weights["projection.vectors.weight"].shape == (16, 32)
    finished = [FinishedStage("one", "contrastive", 1, False, save(home / "one", weights))]
    run.export.write(run.model, finished, home / "model")
    expected = model.eval()(BATCH)[:, :32]
    torch.testing.assert_close(load_model(home / "model").embedder(BATCH), expected, atol=1e-5, rtol=1e-4)


def started(rank, world_size, run, finished, teachers):
    """The projection that a stage begins with under each teacher; one number: it has none."""
    found = []
    for teacher in teachers:
        [loss] = run.settings.loss
        settings = run.settings.model_copy(update={"loss": (loss.model_copy(update={"teacher": teacher}),)})
        stage = replace(run, finished=finished, settings=settings)
        wrapped = start_model(stage, None, torch.device("cpu"), torch.float32, rows_per_rank=7)
        named = dict(wrapped.module.named_parameters())
        found.append(named.get("projection.vectors.weight", torch.tensor(0.0)).detach().clone())
        wrapped.destroy()
    return found


@pytest.mark.slow
def test_a_stage_begins_with_the_projection_that_came_before_where_it_fits(run, home, tmp_path):
    for width in (16, 32, 48):
        save_teacher(home / f"teacher-{width}", hidden_size=width)
    save_teacher(home / "teacher", hidden_size=16)
    model = with_teacher(run.model.build(torch.float32), run.settings, run.seed)
    weights = {name: value + 1 for name, value in trainable_weights(model).items()}
    finished = (FinishedStage("one", "contrastive", 1, False, save(home / "one", weights)),)
    teachers = [str(home / f"teacher-{width}") for width in (16, 32, 48)]
    [[same, alike, other]] = run_ranks(started, 1, tmp_path, run, finished, teachers)
    assert torch.equal(same, weights["projection.vectors.weight"])
    assert alike.ndim == 0
    torch.testing.assert_close(other.T @ other, torch.eye(32))
