"""The loop: what a step may do, who is told, and a learning rate."""

from rayembed.training.trainer import learning_rate_factor
from tests.training.sources import stage


def test_learning_rate_rises_then_falls_to_nothing():
    factors = [learning_rate_factor(step, stage(steps=10, warmup_steps=4)) for step in range(10)]
    assert factors[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert factors == sorted(factors[:5]) + sorted(factors[5:], reverse=True)
    assert 0 < factors[-1] < 0.2
