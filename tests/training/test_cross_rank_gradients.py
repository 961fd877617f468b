"""Parameter gradients at 1, 2 and 3 real ranks equal those of the whole batch in one process.

All cases of a number of ranks run in one set of processes, because starting them is what takes time.
"""

import pytest
import torch
import torch.distributed as dist

from rayembed.config.stage import StageConfig
from rayembed.config.training import TrainingConfig
from rayembed.data.stream import local_batches
from rayembed.training.resources import StepTimer
from rayembed.training.step import contrastive_loss, encode_and_backward
from tests.training.models import Unwrapped, gradients, make_embedder
from tests.training.sources import stage, stream_spec
from tests.training.spawn import run_ranks

# Seven rows do not divide by two or three: ranks hold different numbers of rows, documents and chunks.
ROWS = 7
BUDGET = 90
WORLD_SIZES = (1, 2, 3)


def infonce(**settings):
    return {"type": "infonce", "temperature": 0.1, **settings}


LOSSES: dict[str, dict] = {
    "plain": {"loss": [infonce()]},
    "both-directions": {"loss": [infonce(document_to_query_weight=0.5)]},
    "same-side": {"loss": [infonce(query_to_query=True, document_to_document=True)]},
    "margin-and-hardness": {"loss": [infonce(false_negative_margin=0.05, hardness=2.0)]},
    "matryoshka": {
        "loss": [infonce(document_to_query_weight=0.5)],
        "matryoshka": {"dimensions": [32, 8], "weights": [1.0, 0.5]},
    },
    "distillation": {"loss": [infonce(), {"type": "score_distillation", "weight": 0.5, "temperature": 0.1}]},
}
CASES = [(name, budget) for name in LOSSES for budget in (None, BUDGET)]
DEEPSPEED_CASES = [
    (zero_stage, dtype, lora, budget)
    for zero_stage in (0, 1, 2, 3)
    for dtype in ("float32", "bfloat16")
    for lora in (True, False)
    for budget in (None, BUDGET)
    if not (zero_stage == 0 and dtype == "bfloat16")
]
# Three ranks only add uneven sizes, one rank only DeepSpeed itself: the corners of the matrix are enough.
FEWER_DEEPSPEED_CASES = [
    (0, "float32", True, BUDGET),
    (1, "bfloat16", True, BUDGET),
    (2, "float32", False, BUDGET),
    (3, "float32", True, BUDGET),
]


def deepspeed_cases(world_size):
    return DEEPSPEED_CASES if world_size == 2 else FEWER_DEEPSPEED_CASES


def config_of(name: str) -> StageConfig:
    return stage(batch_size=ROWS, temperature=None, **LOSSES[name])


def step_gradients(wrapped, batch, config, budget):
    def loss_of(vectors):
        return contrastive_loss(vectors, batch, config, StepTimer())

    return encode_and_backward(wrapped, batch.packed, loss_of, StepTimer(), budget)


def averaged(rank, world_size, spec, name, budget):
    """Loss and gradients of one step, averaged over ranks as DeepSpeed does, without DeepSpeed."""
    wrapped = Unwrapped(make_embedder())
    [batch] = local_batches(spec, start=1, stop=2, rank=rank, world_size=world_size)
    output = step_gradients(wrapped, batch, config_of(name), budget)
    results = {"loss": output.loss.detach(), **gradients(wrapped.module)}
    rows = output.counts_S["loss"]
    for value in (*results.values(), rows):
        dist.all_reduce(value)
    return {key: value / world_size for key, value in results.items()} | {"rows": rows}


def under_deepspeed(rank, world_size, spec, zero_stage, dtype, lora, budget):
    """Full gradients as DeepSpeed hands them to its optimizer."""
    from deepspeed.utils import safe_get_full_grad

    from rayembed.training import deepspeed

    config, dtype = config_of("both-directions"), getattr(torch, dtype)
    training = TrainingConfig(zero_stage=zero_stage, activation_checkpointing=zero_stage == 2)
    model = make_embedder(lora=lora, dtype=dtype).train()
    wrapped = deepspeed.wrap(model, config, training, rows_per_rank=3, dtype=dtype)
    [batch] = local_batches(spec, start=1, stop=2, rank=rank, world_size=world_size)
    step_gradients(wrapped, batch, config, budget)
    parameters = deepspeed.trainable_parameters(wrapped)
    found = {name: safe_get_full_grad(parameter).float().clone() for name, parameter in parameters}
    wrapped.destroy()
    return found


def all_cases(rank, world_size, specs):
    return {
        "losses": [averaged(rank, world_size, specs[name], name, budget) for name, budget in CASES],
        "deepspeed": [
            under_deepspeed(rank, world_size, specs["both-directions"], *case)
            for case in deepspeed_cases(world_size)
        ],
    }


@pytest.fixture(scope="module")
def specs(tmp_path_factory, tiny_base):
    made = {}
    for name in LOSSES:
        made[name] = stream_spec(
            tmp_path_factory.mktemp(name), tiny_base, config_of(name), teacher=name == "distillation"
        )
    return made


@pytest.fixture(scope="module", params=WORLD_SIZES, ids=lambda world_size: f"ranks{world_size}")
def world_size(request):
    return request.param


@pytest.fixture(scope="module")
def results(world_size, specs, tmp_path_factory):
    """What every rank found."""
    return run_ranks(all_cases, world_size, tmp_path_factory.mktemp("ranks"), specs)


def whole_batch(spec, config, **model):
    """Loss and gradients of the global batch in this process, in one pass."""
    embedder = make_embedder(**model)
    [batch] = local_batches(spec, start=1, stop=2)
    output = contrastive_loss(embedder(batch.packed), batch, config, StepTimer())
    output.loss.backward()
    return {"loss": output.loss.detach(), **gradients(embedder)}


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: f"{CASES[case][0]}-{CASES[case][1]}")
def test_ranks_together_equal_one_process(results, specs, case):
    name, _ = CASES[case]
    expected = whole_batch(specs[name], config_of(name))
    for result in results:
        found = result["losses"][case]
        assert int(found.pop("rows").sum()) == ROWS
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], value, atol=2e-5, rtol=2e-4, msg=lambda m, k=key: f"{k}: {m}"
            )


def test_deepspeed_hands_on_the_gradient_of_the_whole_batch(results, specs, world_size):
    """Every ZeRO stage, number format, adapters and chunks; activation checkpointing at stage 2."""
    config, spec = config_of("both-directions"), specs["both-directions"]
    for case, (zero_stage, dtype, lora, budget) in enumerate(deepspeed_cases(world_size)):
        expected = whole_batch(spec, config, lora=lora)
        del expected["loss"]
        for result in results:
            found = result["deepspeed"][case]
            assert found.keys() == expected.keys()
            difference = torch.cat([(found[key] - expected[key]).flatten() for key in expected])
            whole = torch.cat([value.flatten() for value in expected.values()])
            # In bf16 the comparison is with fp32 and says how much the number format costs.
            limit = 1e-4 if dtype == "float32" else 0.1
            error = float(difference.norm() / whole.norm())
            assert error < limit, f"ZeRO {zero_stage} {dtype} lora={lora} budget={budget}: {error:.2e}"


def test_the_formula_itself(specs):
    """The plain formula over the whole batch, without any of the step's code."""
    config, spec = config_of("both-directions"), specs["both-directions"]
    expected = whole_batch(spec, config)
    [batch] = local_batches(spec, start=1, stop=2)
    embedder = make_embedder()
    vectors = embedder(batch.packed)
    query, document = vectors[: batch.num_queries], vectors[batch.num_queries :]
    scores = (query @ document.T / 0.1).masked_fill(~batch.allowed_QK, -torch.inf)
    positives = document[batch.target_Q]
    competing = batch.competing_QB | torch.eye(batch.num_queries, dtype=torch.bool)
    backwards = (positives @ query.T / 0.1).masked_fill(~competing, -torch.inf)
    cross_entropy = torch.nn.functional.cross_entropy
    loss = cross_entropy(scores, batch.target_Q) + 0.5 * cross_entropy(backwards, torch.arange(ROWS))
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected["loss"])
    for name, gradient in gradients(embedder).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)
