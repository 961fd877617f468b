import math

import torch
import torch.nn.functional as F

from rayembed.losses.infonce import document_to_query, infonce

TEMPERATURE = 0.1


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_infonce_equals_the_formula():
    query, document = unit(3, 4), unit(5, 4, seed=1)
    target = torch.tensor([0, 2, 3])
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[2] = torch.tensor([False, True, False, True, False])  # without in-batch negatives
    losses = infonce(query, document, target, mask, TEMPERATURE)
    for row in range(3):
        scores = [math.exp(float(query[row] @ document[k]) / TEMPERATURE) for k in range(5)]
        pool = sum(score for k, score in enumerate(scores) if mask[row, k])
        expected = -math.log(scores[int(target[row])] / pool)
        assert math.isclose(float(losses[row]), expected, rel_tol=1e-4, abs_tol=1e-5)


def test_other_direction_equals_the_formula_and_is_zero_without_rivals():
    query, document = unit(3, 4), unit(5, 4, seed=1)
    target = torch.tensor([0, 2, 3])
    competing = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    losses = document_to_query(query, document, query, target, competing, TEMPERATURE)
    for row in range(3):
        positive = document[target[row]]
        own = math.exp(float(positive @ query[row]) / TEMPERATURE)
        rivals = sum(
            math.exp(float(positive @ query[j]) / TEMPERATURE) for j in range(3) if competing[row, j]
        )
        assert math.isclose(float(losses[row]), -math.log(own / (own + rivals)), rel_tol=1e-4, abs_tol=1e-5)
    assert float(losses[2]) == 0.0
