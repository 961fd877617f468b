"""A step that learns a teacher's hidden states, from the recipe's loss to the gradient."""

import pytest
import torch

from rayembed.common.errors import ConfigError
from rayembed.config.loading import validate_config
from rayembed.contract import Contract
from rayembed.contract.packing import pack_ids
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.plan_store import PlanReader
from rayembed.model.checkpoint import load_model
from tests.training.models import gradients
from tests.training.recipes import tiny_recipe
from tests.training.sources import stage, stream_spec
from tests.training.spawn import run_ranks
from tests.training.stages import stage_of
from tests.training.test_vector_distillation import (
    BUDGET,
    PROMPTS,
    STEP,
    averaged,
    check,
    save_teacher,
    student,
    taken,
    with_budget,
    with_reader,
)
from tests.training.test_vector_distillation import reference as vectors_reference

WEIGHTS = {"state_matching": 0.7, "vector_distillation": 0.5, "infonce": 0.2}


def run_with(home, tiny_base, types, layers=None, teacher="teacher", **settings):
    """A stage with some of the losses and a teacher in a folder of the workspace."""
    losses = []
    for name in types:
        loss = {"type": name, "weight": WEIGHTS[name]}
        loss |= {"temperature": 0.1} if name == "infonce" else {"teacher": teacher}
        losses.append(loss | ({"layers": layers} if name == "state_matching" else {}))
    one = stage(batch_size=7, temperature=None, loss=losses, **settings).model_dump(mode="json")
    config = validate_config(
        {"name": "taught", "base_model": str(tiny_base), "contract": {"max_length": 64}, "stages": [one]},
        origin="test",
    )
    return with_reader(stage_of(config, tiny_base, stream_spec(home, tiny_base, config.stages[0]), home))


def layers_of_text(embedder, tokens):
    """States of one text's pooled tokens after every layer, from the backbone itself."""
    batch = pack_ids(tokens.input_ids, tokens.pool_starts)
    output = embedder.backbone(
        input_ids=batch.input_ids_T[None], position_ids=batch.position_ids_T[None],
        packed_lengths=batch.lengths, output_hidden_states=True, use_cache=False,
    )  # fmt: skip
    return [states[0, tokens.pool_starts[0] :] for states in output.hidden_states[1:]]


def reference(run, home, pairs):
    """Mean over rows of the distance of query and positive, each encoded alone; also the mean of vectors."""
    tokenizer, contract = load_tokenizer(run.stream.tokenizer), run.stream.contract
    embedder, teacher = student(run), load_model(home / "teacher").embedder
    projected = getattr(embedder, "projection", {})
    rows = run.stream.chooser().choose(PlanReader(run.stream.plan).read(STEP))
    distances = []
    for row in rows:
        for text, instruction in ((row.query, row.instruction), (row.texts[row.target], row.target[1])):
            tokens = contract.tokenize(tokenizer, [text], instruction or None)
            ours = layers_of_text(embedder, tokens)
            with torch.no_grad():
                theirs = layers_of_text(teacher, tokens)
            for mine, other in pairs:
                states, wanted = ours[mine - 1], theirs[other - 1]
                if str(mine) in projected:
                    states = states @ projected[str(mine)].weight.T
                of_tokens = ((states - wanted) ** 2).sum(1) / (wanted**2).sum(1)
                distances.append(of_tokens.mean() / len(pairs))
    loss = WEIGHTS["state_matching"] * torch.stack(distances).sum() / len(rows)
    # States know nothing of the head or of later layers.
    (loss + 0 * sum(one.sum() for one in embedder.parameters() if one.requires_grad)).backward()
    return {"loss": loss.detach(), **gradients(embedder)}


@pytest.mark.parametrize(
    ("sizes", "layers", "pairs"),
    [
        ({}, None, [(1, 1), (2, 2)]),
        ({"hidden_size": 16}, {1: 2}, [(1, 2)]),
        ({"num_hidden_layers": 5, "hidden_size": 48}, None, [(1, 3), (2, 5)]),
    ],
    ids=["alike", "narrow, one layer", "wide and deep"],
)
def test_a_step_equals_the_formula_over_texts_encoded_alone(home, tiny_base, tmp_path, sizes, layers, pairs):
    save_teacher(home / "teacher", **sizes)
    run = run_with(home, tiny_base, ["state_matching"], layers)
    expected = reference(run, home, pairs)
    assert expected["loss"] > 0.1
    assert any(gradient.abs().max() > 1e-3 for name, gradient in expected.items() if "lora_" in name)
    names = {name for name in expected if "projection" in name}
    assert names == ({f"projection.{mine}.weight" for mine, _ in pairs} if "hidden_size" in sizes else set())
    check(taken(run), expected)
    check(taken(with_budget(run, BUDGET)), expected)


def test_two_ranks_together_equal_the_formulas_of_states_and_of_vectors(home, tiny_base, tmp_path):
    """One test for both losses, as starting ranks takes most of the time."""
    save_teacher(home / "teacher", hidden_size=16)
    states = run_with(home, tiny_base, ["state_matching"])
    expected = [reference(states, home, [(1, 1), (2, 2)])] * 2
    save_teacher(home / "prompted", hidden_size=48, contract=Contract(**PROMPTS))
    vectors = run_with(home, tiny_base, ["vector_distillation"], teacher="prompted")
    expected += [vectors_reference(vectors, home / "prompted")] * 2
    for results in run_ranks(averaged, 2, tmp_path, [states, vectors]):
        for found, wanted in zip(results, expected, strict=True):
            check(found, wanted)


def test_losses_of_vectors_and_of_states_add_up(home, tiny_base):
    """As NV-Embed trains a pruned model; rounded vectors change nothing about states."""
    bits = {"quantisation": {"formats": ["binary"]}}
    save_teacher(home / "teacher")
    sides = [
        ["state_matching"],
        ["vector_distillation", "infonce"],
        ["infonce", "vector_distillation", "state_matching"],
    ]
    first, second, both = (taken(run_with(home, tiny_base, types, **bits)) for types in sides)
    check(both, {name: first[name] + second[name] for name in both})


def test_what_cannot_be_matched_is_refused(home, tiny_base):
    save_teacher(home / "teacher", contract=Contract(max_length=40))
    with pytest.raises(
        ConfigError, match=r"state_matching compares tokens one by one, and the teacher .*teacher"
    ):
        run_with(home, tiny_base, ["state_matching"])
    save_teacher(home / "teacher")
    for layers, message in (
        ({3: 1}, "layer 3 of the student, which has 2"),
        ({1: 0}, "layer 0 of the teacher"),
    ):
        with pytest.raises(ConfigError, match=message):
            student(run_with(home, tiny_base, ["state_matching"], layers))
    losses = [{"type": name, "teacher": name} for name in ("state_matching", "vector_distillation")]
    with pytest.raises(ConfigError, match="one teacher, not state_matching, vector_distillation; name one"):
        tiny_recipe(stages=[stage().model_dump(mode="json") | {"loss": losses}])
