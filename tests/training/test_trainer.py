"""The loop: who is told of what, what a bad loss leaves behind, and the learning rate."""

from types import SimpleNamespace

import pytest
import torch

from rayembed.config.training import TrainingConfig
from rayembed.training.callbacks import Callback, TrainerState
from rayembed.training.step import BadBatch, StepOutput, spoiled_unless_finite
from rayembed.training.trainer import learning_rate_factor, run_steps, take_step
from tests.training.sources import stage
from tests.training.spawn import run_ranks
from tests.training.test_deepspeed import make_model


class Told(Callback):
    """Writes down what it is told, with the weights at that time."""

    def __init__(self, state):
        super().__init__(state)
        self.calls = []

    def on_step(self, batch, output, gradient_norm):
        self.calls.append((f"step {batch.step}", self.weights()))

    def on_bad_batch(self, batch, error):
        self.calls.append((f"bad {batch.step}: {error}", self.weights()))

    def after_step(self, next_step):
        self.calls.append((f"next {next_step}", self.weights()))
        self.state.leaving = next_step == 4

    def close(self):
        self.calls.append(("closed", self.weights()))

    def weights(self):
        return {name: value.detach().clone() for name, value in self.state.wrapped.module.named_parameters()}


class InfiniteOnOneRank:
    """A step whose loss is infinite with a finite gradient, in step 1 and on rank 1 only."""

    def __init__(self, rank):
        self.rank = rank

    def backward(self, wrapped, batch, timer):
        loss = wrapped(torch.ones(2, 7)).pow(2).mean()
        if batch.step == 1 and self.rank == 1:
            loss = loss + torch.inf
        wrapped.backward(spoiled_unless_finite(loss))
        return StepOutput(loss.detach(), {}, {})


def told(rank, world_size):
    from rayembed.training import deepspeed

    settings, training = stage(steps=8), TrainingConfig(zero_stage=1)
    wrapped = deepspeed.wrap(make_model(), settings, training, rows_per_rank=2, dtype=torch.float32)
    here = SimpleNamespace(settings=settings, training=training, name="test", seed=1, steps_before=0)
    state = TrainerState(here, wrapped, torch.device("cpu"), rank, world_size, first_step=0)
    callback = Told(state)
    packed = SimpleNamespace(num_tokens=1)
    batches = [SimpleNamespace(step=step, packed=packed) for step in range(8)]
    run_steps(state, InfiniteOnOneRank(rank), batches, [callback])
    return callback.calls


@pytest.mark.slow
def test_a_loss_that_is_infinite_on_one_rank_moves_nothing_on_any(tmp_path):
    for calls in run_ranks(told, 2, tmp_path):
        assert [what for what, _ in calls] == [
            "step 0", "next 1", "bad 1: the loss or its gradient is not finite", "next 2", "step 2", "next 3",
            "step 3", "next 4", "closed",
        ]  # fmt: skip
        before, bad, better = calls[1][1], calls[2][1], calls[4][1]
        assert all(torch.equal(bad[name], value) for name, value in before.items())
        assert all(torch.isfinite(value).all() for value in better.values())
        assert any(not torch.equal(better[name], value) for name, value in before.items())


def test_a_bad_gradient_is_found_without_a_collective(monkeypatch):
    """DeepSpeed gives its norm as a plain number then, and NCCL would refuse a tensor of it on the CPU."""

    class Overflowed:
        optimizer = SimpleNamespace(param_groups=[])

        def zero_optimization_stage(self):
            return 1

        def step(self):
            pass

        def get_global_grad_norm(self):
            return float("inf")

    class Finite:
        def backward(self, wrapped, batch, timer):
            return StepOutput(torch.tensor(1.0), {}, {})

    def refuse(*_, **__):
        raise RuntimeError("No backend type associated with device type cpu")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for collective in ("all_reduce", "all_gather", "broadcast"):
        monkeypatch.setattr(torch.distributed, collective, refuse)
    here = SimpleNamespace(settings=stage(), training=TrainingConfig(), name="test", seed=1, steps_before=0)
    state = TrainerState(here, Overflowed(), torch.device("cpu"), 0, 2, first_step=0)
    with pytest.raises(BadBatch, match="not finite"):
        take_step(state, Finite(), SimpleNamespace(step=0, packed=SimpleNamespace(num_tokens=1)))


def test_a_bad_batch_can_end_the_stage_at_once():
    class Stops(Callback):
        def on_bad_batch(self, batch, error):
            self.state.stopped = True

        def after_step(self, next_step):
            pytest.fail("the stage goes on")

    class Bad:
        def backward(self, wrapped, batch, timer):
            raise BadBatch("the loss is not finite")

    settings = stage()
    here = SimpleNamespace(settings=settings, training=TrainingConfig(), name="test", seed=1, steps_before=0)
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(param_groups=[]))
    state = TrainerState(here, wrapped, torch.device("cpu"), 0, 1, first_step=0)
    batches = [SimpleNamespace(step=step, packed=SimpleNamespace(num_tokens=1)) for step in range(2)]
    run_steps(state, Bad(), batches, [Stops(state)])


def test_learning_rate_rises_then_falls_to_nothing():
    factors = [learning_rate_factor(step, stage(steps=10, warmup_steps=4)) for step in range(10)]
    assert factors[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert factors == sorted(factors[:5]) + sorted(factors[5:], reverse=True)
    assert 0 < factors[-1] < 0.2


def test_other_schedules_follow_the_same_warm_up():
    def factors(schedule):
        settings = stage(steps=10, warmup_steps=4, schedule=schedule)
        return [learning_rate_factor(step, settings) for step in range(10)]

    assert factors("constant") == [0.2, 0.4, 0.6, 0.8] + [1.0] * 6
    cosine = factors("cosine")
    assert cosine[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert cosine[7] == pytest.approx(0.5)
    assert cosine[5] > factors("linear")[5]
    assert 0 < cosine[-1] < factors("linear")[-1]
