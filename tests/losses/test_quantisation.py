"""Losses on rounded vectors: which vectors they see, and where the gradient goes."""

import pytest
import torch
import torch.nn.functional as F

from rayembed.common.errors import ConfigError
from rayembed.contract.ranges import VectorRanges
from rayembed.contract.vectors import cut
from rayembed.engine.vector_formats import VectorForm
from rayembed.losses import InfoNCEConfig, LossInputs, MatryoshkaConfig, QuantisationConfig, row_losses
from rayembed.losses.infonce import infonce
from rayembed.losses.quantisation import rounded
from tests.losses.test_options import ALLOWED, COMPETING, DOCUMENT, QUERY, TARGET
from tests.training.recipes import tiny_recipe
from tests.training.sources import stage

RANGES = VectorRanges.of(DOCUMENT.numpy())


@pytest.mark.parametrize("ranges", [None, RANGES], ids=["own", "measured"])
@pytest.mark.parametrize("form", ["int8", "binary"])
def test_rounded_vectors_are_those_that_a_search_sees_and_pass_the_gradient_through(form, ranges):
    vectors = QUERY.clone().requires_grad_()
    found = rounded(vectors, form, ranges)
    expected = torch.from_numpy(VectorForm(format=form).as_searched(QUERY.numpy(), ranges))
    torch.testing.assert_close(found, expected)
    weights = torch.arange(QUERY.numel()).view_as(QUERY).sin()
    (found * weights).sum().backward()
    torch.testing.assert_close(vectors.grad, weights)


@pytest.mark.parametrize("ranges", [None, RANGES], ids=["own", "measured"])
def test_the_loss_is_the_sum_over_formats_at_every_width(ranges):
    expected = torch.zeros(3)
    for width, share in ((4, 1.0), (2, 0.5)):
        vectors = cut(QUERY, width), cut(DOCUMENT, width)
        threshold = torch.from_numpy(ranges.numbers(width)[1]) if ranges else 0
        bits = [F.normalize(torch.sign(one - threshold), dim=1) for one in vectors]
        expected += share * infonce(*vectors, TARGET, ALLOWED, 0.1)
        expected += share * 0.3 * infonce(*bits, TARGET, ALLOWED, 0.1)
    got = row_losses(
        [InfoNCEConfig(temperature=0.1)],
        LossInputs(QUERY, DOCUMENT, TARGET, ALLOWED, COMPETING),
        MatryoshkaConfig(dimensions=(4, 2), weights=(1.0, 0.5)),
        QuantisationConfig(formats=("binary",), weight=0.3),
        ranges,
    )
    torch.testing.assert_close(got, expected)


def test_masked_tokens_have_no_vectors_to_round():
    settings = stage().model_dump(mode="json") | {"kind": "mntp", "loss": []}
    settings["quantisation"] = {"formats": ["int8"]}
    with pytest.raises(ConfigError, match="mntp makes no vectors to cut or round; remove quantisation"):
        tiny_recipe(stages=[settings])
