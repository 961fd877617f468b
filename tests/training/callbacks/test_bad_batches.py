"""A gradient that is not finite moves nothing, at every ZeRO stage, and the batch is named."""

import json

import pytest
import torch

from rayembed.config.training import TrainingConfig
from rayembed.training.callbacks.bad_batches import name_batch, record_batch
from rayembed.training.step import BadBatch
from tests.training.sources import stage, stream_spec
from tests.training.spawn import run_ranks
from tests.training.test_deepspeed import make_model

CASES = [(0, "float32"), *((zero, dtype) for zero in (1, 2, 3) for dtype in ("float32", "bfloat16"))]


def before_and_after(rank, world_size):
    """For each case: weights and moments before a bad step, after it, and after a good one."""
    from rayembed.training.deepspeed import (
        optimizer_steps,
        read_state,
        set_learning_rate,
        take_step,
        wrap,
    )

    found = []
    for zero_stage, name in CASES:
        dtype = getattr(torch, name)
        settings = stage(batch_size=4, weight_decay=0.1)
        wrapped = wrap(
            make_model(), settings, TrainingConfig(zero_stage=zero_stage), rows_per_rank=2, dtype=dtype
        )
        set_learning_rate(wrapped, 1.0)
        states, norms = [], []
        for step, spoil in enumerate((1.0, float("nan"), float("inf"), 1.0)):
            rows = torch.randn(2, 7, generator=torch.Generator().manual_seed(10 * step + rank)).to(dtype)
            outputs = wrapped(rows).float()
            # Only one rank meets the bad value; the outputs keep it out of the loss of the other.
            wrapped.backward((outputs * (spoil if rank == 0 else 1.0)).pow(2).mean())
            norms.append(float(take_step(wrapped)))
            weights, moments = read_state(wrapped)
            states.append({**weights, **moments})
        found.append({"states": states, "norms": norms, "steps": optimizer_steps(wrapped)})
        wrapped.destroy()
    return found


@pytest.mark.slow
def test_a_bad_gradient_moves_nothing_at_any_zero_stage(tmp_path):
    for result in run_ranks(before_and_after, 2, tmp_path):
        for case, found in zip(CASES, result, strict=True):
            good, after_nan, after_inf, better = found["states"]
            assert [bool(torch.isfinite(torch.tensor(norm))) for norm in found["norms"]] == [
                True, False, False, True,
            ], case  # fmt: skip
            assert found["steps"] == 2, case
            for name, value in good.items():
                assert torch.equal(after_nan[name], value), (case, name)
                assert torch.equal(after_inf[name], value), (case, name)
                assert torch.isfinite(better[name]).all()
            assert any(not torch.equal(better[name], value) for name, value in good.items()), case


def test_a_bad_batch_is_named_with_all_its_rows(tmp_path, tiny_base):
    config = stage(batch_size=12)
    spec = stream_spec(tmp_path, tiny_base, config)
    sentence, record = name_batch(BadBatch("the loss is not finite"), config, 1, spec)
    assert sentence.startswith("the loss is not finite in stage test, step 1, of the rows one ")
    assert sentence.endswith(" and 4 more")
    assert len(record["rows"]) == 12
    assert {row["source"] for row in record["rows"]} == {"one", "two"}
    assert all(len(row["query_id"]) == 16 for row in record["rows"])
    path = record_batch(tmp_path, record)
    record_batch(tmp_path, record)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record, record]
