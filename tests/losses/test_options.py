"""Options of InfoNCE, and the other losses, against formulas written out row by row."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rayembed.contract.vectors import cut
from rayembed.losses import InfoNCEConfig, LossInputs, MatryoshkaConfig, SimCSEConfig, row_losses
from rayembed.losses.infonce import document_to_document, infonce, query_to_query
from rayembed.losses.measures import row_measures, uniformity
from rayembed.losses.mntp import mask_tokens, masked_next_token
from rayembed.losses.score_distillation import score_distillation
from rayembed.losses.vector_distillation import squared_distance

TEMPERATURE = 0.1
TARGET = torch.tensor([0, 2, 3])
ALLOWED = torch.tensor(
    [[True, True, True, True, True], [True, True, True, True, False], [False, True, False, True, False]]
)
COMPETING = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


QUERY, DOCUMENT = unit(3, 4), unit(5, 4, seed=1)


def written_out(row, *, margin=math.inf, hardness=0.0, same_side=False):
    """The loss of one row, term by term."""
    positive = float(QUERY[row] @ DOCUMENT[TARGET[row]])
    negatives = [
        float(QUERY[row] @ DOCUMENT[k]) for k in range(5) if ALLOWED[row, k] and k != int(TARGET[row])
    ]
    if same_side:
        negatives += [float(QUERY[row] @ QUERY[j]) for j in range(3) if COMPETING[row, j]]
        target = DOCUMENT[TARGET[row]]
        negatives += [float(target @ DOCUMENT[k]) for k in range(5) if ALLOWED[row, k] and k != TARGET[row]]
    kept = [cosine for cosine in negatives if cosine <= positive + margin]
    pool = sum(math.exp(hardness * cosine) * math.exp(cosine / TEMPERATURE) for cosine in kept)
    own = math.exp(positive / TEMPERATURE)
    return -math.log(own / (own + pool))


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"false_negative_margin": 0.1}, {"margin": 0.1}),
        ({"false_negative_margin": -0.5}, {"margin": -0.5}),
        ({"hardness": 5.0}, {"hardness": 5.0}),
        ({"hardness": 2.0, "false_negative_margin": 0.2}, {"hardness": 2.0, "margin": 0.2}),
    ],
)
def test_options_of_infonce_equal_the_formula(options, reference):
    losses = infonce(QUERY, DOCUMENT, TARGET, ALLOWED, TEMPERATURE, **options)
    plain = infonce(QUERY, DOCUMENT, TARGET, ALLOWED, TEMPERATURE)
    assert not torch.allclose(losses, plain)
    for row in range(3):
        assert math.isclose(float(losses[row]), written_out(row, **reference), rel_tol=1e-4, abs_tol=1e-5)


def test_same_side_negatives_join_the_sum():
    more = [query_to_query(QUERY, QUERY, COMPETING), document_to_document(DOCUMENT, TARGET, ALLOWED)]
    losses = infonce(QUERY, DOCUMENT, TARGET, ALLOWED, TEMPERATURE, more_negatives=more)
    for row in range(3):
        assert math.isclose(float(losses[row]), written_out(row, same_side=True), rel_tol=1e-4)


def test_hardness_is_a_weight_and_is_not_differentiated():
    query = QUERY.clone().requires_grad_()
    infonce(query, DOCUMENT, TARGET, ALLOWED, TEMPERATURE, hardness=5.0).sum().backward()
    scores = QUERY @ DOCUMENT.T / TEMPERATURE
    negative = ALLOWED & (F.one_hot(TARGET, 5) == 0)
    shares = torch.softmax(
        (scores + 5.0 * TEMPERATURE * scores * negative).masked_fill(~ALLOWED, -torch.inf), 1
    )
    expected = (shares - F.one_hot(TARGET, 5)) @ DOCUMENT / TEMPERATURE
    torch.testing.assert_close(query.grad, expected)


def test_matryoshka_is_the_weighted_sum_over_cuts():
    half = F.normalize(QUERY[:, :2], dim=1), F.normalize(DOCUMENT[:, :2], dim=1)
    torch.testing.assert_close((cut(QUERY, 2), cut(DOCUMENT, 2)), half)
    expected = infonce(QUERY, DOCUMENT, TARGET, ALLOWED, 0.1) + 0.5 * infonce(*half, TARGET, ALLOWED, 0.1)
    got = row_losses(
        [InfoNCEConfig(temperature=0.1)],
        LossInputs(QUERY, DOCUMENT, TARGET, ALLOWED, COMPETING),
        MatryoshkaConfig(dimensions=(4, 2), weights=(1.0, 0.5)),
    )
    torch.testing.assert_close(got, expected)


def test_distillation_equals_torch_and_is_zero_without_scores():
    teacher = torch.tensor([[2.0, 1.0, 0.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 1.0, 0.0]])
    scored = torch.tensor([[True, True, True, False, False], [False] * 5, [True, False, False, True, False]])
    query = QUERY.clone().requires_grad_()
    losses = score_distillation(query, DOCUMENT, teacher, scored, TEMPERATURE, 0.5)
    for row in (0, 2):
        own = scored[row]
        student = F.log_softmax((QUERY[row] @ DOCUMENT[own].T) / TEMPERATURE, dim=0)
        wanted = F.softmax(teacher[row][own] / 0.5, dim=0)
        assert float(losses[row]) == pytest.approx(
            float(F.kl_div(student, wanted, reduction="sum")), rel=1e-4
        )
    assert float(losses[1]) == 0.0
    losses.sum().backward()
    assert torch.isfinite(query.grad).all()
    assert query.grad[1].abs().sum() == 0
    other = unit(3, 4, seed=5)
    torch.testing.assert_close(squared_distance(QUERY, other), 2 - 2 * (QUERY * other).sum(1))


def test_simcse_is_cross_entropy_over_second_encodings():
    second = F.normalize(QUERY + 0.1 * unit(3, 4, seed=7), dim=1)
    everything = torch.ones(3, 3, dtype=torch.bool)
    losses = SimCSEConfig().rows(LossInputs(QUERY, second, torch.arange(3), everything, COMPETING))
    expected = F.cross_entropy(QUERY @ second.T / 0.05, torch.arange(3), reduction="none")
    torch.testing.assert_close(losses, expected)


def test_masks_leave_out_the_start_the_end_token_and_follow_the_share():
    ids = [7, 8, 9, 10, 11, 12, 0]
    masked, chosen = mask_tokens(
        ids, first=0, share=1.0, mask_id=99, end_id=0, generator=np.random.default_rng(0)
    )
    assert (masked, chosen) == ([7, 99, 99, 99, 99, 99, 0], [1, 2, 3, 4, 5])
    masked, chosen = mask_tokens(
        ids, first=3, share=1e-9, mask_id=99, end_id=0, generator=np.random.default_rng(0)
    )
    assert len(chosen) == 1
    assert chosen[0] in (3, 4, 5)
    long = list(range(1, 5001))
    _, chosen = mask_tokens(long, first=0, share=0.2, mask_id=0, end_id=0, generator=np.random.default_rng(1))
    assert 900 < len(chosen) < 1100
    assert mask_tokens(
        [5, 0], first=0, share=1.0, mask_id=9, end_id=0, generator=np.random.default_rng(1)
    ) == (
        [5, 0],
        [],
    )


def test_next_token_loss_is_cross_entropy():
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([1, 5, 0])
    expected = -torch.log_softmax(logits, 1)[torch.arange(3), tokens]
    torch.testing.assert_close(masked_next_token(logits.bfloat16(), tokens), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(masked_next_token(logits, tokens), expected)


def test_measures_of_rows():
    alone = ALLOWED.clone()
    alone[2] = F.one_hot(TARGET[2], 5).bool()
    measured = row_measures(QUERY, DOCUMENT, TARGET, alone)
    for row in range(2):
        negatives = [
            float(QUERY[row] @ DOCUMENT[k]) for k in range(5) if ALLOWED[row, k] and k != TARGET[row]
        ]
        positive = float(QUERY[row] @ DOCUMENT[TARGET[row]])
        assert float(measured.positive_Q[row]) == pytest.approx(positive)
        assert float(measured.negative_Q[row]) == pytest.approx(np.mean(negatives), rel=1e-4)
        assert float(measured.hardest_Q[row]) == pytest.approx(max(negatives))
        assert bool(measured.correct_Q[row]) == (positive > max(negatives))
    assert measured.contested_Q.tolist() == [True, True, False]
    assert (float(measured.negative_Q[2]), bool(measured.correct_Q[2])) == (0.0, True)


def test_uniformity_of_spread_and_collapsed_vectors():
    assert float(uniformity(QUERY[:1])) == 0
    assert float(uniformity(QUERY[:1].expand(4, -1))) == pytest.approx(0)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(uniformity(opposite)) == pytest.approx(-8.0)
