"""Adam's moments in 8 bits: near those of plain AdamW, and continued as if there had been no stop."""

from functools import partial

import pytest
import torch

from rayembed.common.errors import ConfigError
from rayembed.training.adamw_8bit import BYTES_PER_MOMENT, adamw_8bit, pack, unpacked
from rayembed.training.model import ModelSpec
from rayembed.training.preflight import memory_of_worker, parameter_counts
from tests.training.recipes import tiny_recipe
from tests.training.spawn import run_ranks
from tests.training.test_deepspeed import take_steps, wrap_model

pytest.importorskip("bitsandbytes")

STEPS = 3
CASES = [(0, torch.float32), (1, torch.float32), (1, torch.bfloat16), (2, torch.bfloat16)]


def make_model():
    """Weights that take 8 bits, also divided by two ranks, and others that are too small for it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("body", torch.nn.Linear(101, 103))
    model.add_module("pooling", torch.nn.Linear(103, 5))
    return model


def unbroken_and_resumed(rank, world_size, zero_stage, dtype):
    from rayembed.training.deepspeed import prime_optimizer, read_state, write_moments, write_weights

    wrapping = partial(wrap_model, zero_stage, dtype, world_size, make=make_model)
    plain = wrapping()
    take_steps(plain, 0, STEPS, rank, world_size, dtype)
    found = {"plain": read_state(plain)[1]}
    plain.destroy()

    wrapped = wrapping(optimizer="adamw_8bit")
    take_steps(wrapped, 0, STEPS, rank, world_size, dtype)
    weights, found["moments"] = read_state(wrapped)
    take_steps(wrapped, STEPS, STEPS, rank, world_size, dtype)
    found["unbroken"], _ = read_state(wrapped)
    adam = getattr(wrapped.optimizer, "optimizer", wrapped.optimizer)
    found["bytes"] = sum(state[name].nbytes for state in adam.state.values() for name in ("state1", "state2"))
    wrapped.destroy()

    wrapped = wrapping(weights, optimizer="adamw_8bit")
    prime_optimizer(wrapped, wrapped(torch.zeros(1, 101, dtype=dtype)))
    write_weights(wrapped, weights)
    write_moments(wrapped, found["moments"], STEPS)
    take_steps(wrapped, STEPS, STEPS, rank, world_size, dtype)
    found["resumed"], _ = read_state(wrapped)
    wrapped.destroy()
    return found


def all_cases(rank, world_size):
    return [unbroken_and_resumed(rank, world_size, *case) for case in CASES]


@pytest.mark.slow
def test_moments_are_near_those_of_adamw_and_a_resumed_run_is_an_unbroken_one(tmp_path):
    size = sum(parameter.numel() for parameter in make_model().parameters())
    for results in run_ranks(all_cases, 2, tmp_path):
        for (zero_stage, dtype), found in zip(CASES, results, strict=True):
            for name, weight in found["unbroken"].items():
                assert torch.equal(weight, found["resumed"][name]), (zero_stage, dtype, name)
            for name, moment in found["moments"].items():
                wanted = found["plain"][name]
                error = float((moment - wanted).norm() / wanted.norm())
                assert error < (0.02 if dtype is torch.float32 else 0.05), (zero_stage, dtype, name, error)
            assert any(
                not torch.equal(found["moments"][name], found["plain"][name]) for name in found["plain"]
            )
            assert found["bytes"] < 4 * size, "8 bytes a weight in fp32"


def test_states_are_unpacked_and_packed_block_by_block():
    parameter = torch.nn.Parameter(torch.zeros(5000))
    optimizer = adamw_8bit()([parameter], lr=0.1)
    optimizer.init_state(optimizer.param_groups[0], parameter, 0, 0)
    state = optimizer.state[parameter]
    assert not any(moment.any() for moment in unpacked(state))
    mean = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    pack(state, [mean, mean.square()])
    found, square = unpacked(state)
    block = mean[256:512]
    assert float((found[256:512] - block).abs().max()) < 0.02 * float(block.abs().max())
    assert float((square - mean.square()).norm() / mean.square().norm()) < 0.02


def test_the_memory_on_paper_is_less(tiny_base):
    config = tiny_recipe(tiny_base)
    model = ModelSpec.of(config, tiny_base)
    small = config.training.model_copy(update={"optimizer": "adamw_8bit"})
    saved = memory_of_worker(model, config.training, device="cpu").optimizer
    saved -= memory_of_worker(model, small, device="cpu").optimizer
    assert saved == parameter_counts(model)[1] * 2 * (4 - BYTES_PER_MOMENT)


def test_it_is_refused_where_weights_lie_in_parts(tiny_base):
    with pytest.raises(ConfigError, match=r"adamw_8bit works up to training\.zero_stage 2"):
        tiny_recipe(tiny_base, training={"optimizer": "adamw_8bit", "zero_stage": 3})
