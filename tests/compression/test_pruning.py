"""The three methods against plain references."""

import pytest
import torch

from rayembed.common.errors import ConfigError
from rayembed.compression import pruning
from rayembed.compression.pruning import Hessian, SquareSums, pruned

PATTERNS = ["unstructured", "2:4", "4:8"]


def layer(outputs: int = 6, inputs: int = 24, tokens: int = 80):
    """Weights, and inputs that are correlated and of different size."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(inputs, inputs, generator=generator)
    inputs_TI = torch.randn(tokens, inputs, generator=generator) @ mixing * torch.linspace(0.1, 2, inputs)
    return torch.randn(outputs, inputs, generator=generator), inputs_TI


def seen(kind, inputs_TI):
    statistics = kind(inputs_TI.shape[1], inputs_TI.device)
    for part in inputs_TI.split(30):
        statistics.add(part.unsqueeze(0))
    return statistics


def obs(weight, inputs_TI, pattern: str, block: int, share: float):
    """Optimal brain surgeon in fp64, column by column, with the inverse Hessian of those to its right."""
    weight, inputs_TI = weight.double(), inputs_TI.double()
    hessian = inputs_TI.T @ inputs_TI
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    group = block if pattern == "unstructured" else int(pattern[2:])
    inverses = [torch.linalg.inv(hessian[column:, column:]) for column in range(len(hessian))]
    costs = torch.stack([inverse[0, 0] for inverse in inverses])
    for start in range(0, weight.shape[1], group):
        scores = weight[:, start : start + group] ** 2 / costs[start : start + group]
        gone = torch.zeros_like(scores, dtype=torch.bool)
        if pattern == "unstructured":
            order = scores.flatten().argsort()[: round(share * scores.numel())]
            gone.view(-1)[order] = True
        else:
            for row in range(len(scores)):
                gone[row, scores[row].argsort()[: group - int(pattern[0])]] = True
        for column in range(start, min(start + group, weight.shape[1])):
            for row in range(len(weight)):
                if gone[row, column - start]:
                    inverse = inverses[column]
                    weight[row, column:] -= weight[row, column].clone() / inverse[0, 0] * inverse[0]
                    weight[row, column] = 0
    return weight


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sparsegpt_is_obs_column_by_column(pattern, monkeypatch):
    monkeypatch.setattr(pruning, "_BLOCK", 16)  # the last block is shorter
    weight, inputs_TI = layer()
    found = pruned(weight, pattern, seen(Hessian, inputs_TI), 0.4)
    expected = obs(weight, inputs_TI, pattern, 16, 0.4)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_methods_prune_what_they_should_and_sparsegpt_loses_least(pattern):
    weight, inputs_TI = layer(outputs=32)
    errors = {}
    for method, kind in pruning.STATISTICS.items():
        found = pruned(weight, pattern, kind and seen(kind, inputs_TI))
        errors[method] = ((found - weight) @ inputs_TI.T).square().sum().item()
        zeros = found == 0
        assert zeros.float().mean() == 0.5
        if pattern != "unstructured":
            of = int(pattern[2:])
            assert (zeros.view(-1, of).sum(dim=1) == of // 2).all()
        if method != "sparsegpt":
            assert torch.equal(found[~zeros], weight[~zeros])
            scores = weight.abs() * (inputs_TI.norm(dim=0) if method == "wanda" else 1)
            axis = scores.view(-1, of) if pattern != "unstructured" else scores
            lost = zeros.view_as(axis)
            if pattern == "unstructured" and method == "magnitude":
                assert scores[zeros].max() < scores[~zeros].min()
            else:
                best = axis.masked_fill(~lost, -1).max(dim=1).values
                assert (best < axis.masked_fill(lost, torch.inf).min(dim=1).values).all()
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def test_inputs_that_are_never_used_and_widths_that_do_not_fit():
    weight, inputs_TI = layer()
    inputs_TI[:, 5] = 0
    found = pruned(weight.bfloat16(), "2:4", seen(Hessian, inputs_TI))
    assert found.dtype is torch.bfloat16
    assert found.isfinite().all()
    assert (found[:, 5] == 0).all()
    with pytest.raises(ConfigError, match="needs a multiple of 8 inputs and a layer has 12"):
        pruned(weight[:, :12], "4:8", seen(SquareSums, inputs_TI[:, :12]))
