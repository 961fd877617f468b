"""Chunks and replayed random numbers change nothing but the memory, in one process."""

import itertools
from dataclasses import replace

import pytest
import torch

from rayembed.config.training import TrainingConfig
from rayembed.contract.packing import split_packed
from rayembed.data.stream import local_batches
from rayembed.training.model import prepare_for_stage
from rayembed.training.resources import StepTimer
from rayembed.training.step import contrastive_loss, encode_and_backward, spoiled_unless_finite
from tests.host_waits import RefuseHostWaits
from tests.training.models import Unwrapped, gradients, make_embedder
from tests.training.sources import stage, stream_spec

BUDGET = 90


@pytest.fixture(scope="module")
def batch(tmp_path_factory, tiny_base):
    spec = stream_spec(tmp_path_factory.mktemp("gradcache"), tiny_base, stage(batch_size=7))
    [batch] = local_batches(spec, start=1, stop=2)
    return batch


def test_chunks_keep_the_budget_and_every_text(batch):
    chunks = split_packed(batch.packed, BUDGET)
    assert len(chunks) > 3
    assert (
        tuple(itertools.chain.from_iterable(chunk.lengths.texts for chunk in chunks))
        == batch.packed.lengths.texts
    )
    assert torch.equal(torch.cat([chunk.input_ids_T for chunk in chunks]), batch.packed.input_ids_T)
    assert all(chunk.num_tokens <= BUDGET for chunk in chunks)
    for chunk, following in itertools.pairwise(chunks):
        assert chunk.num_tokens + following.lengths.texts[0] > BUDGET
    alone = split_packed(batch.packed, 1)
    assert [len(chunk.lengths.texts) for chunk in alone] == [1] * len(batch.packed.lengths.texts)
    assert split_packed(batch.packed, 10**6)[0].num_tokens == batch.packed.num_tokens


def test_vectors_of_chunks_are_those_of_the_batch(batch):
    embedder = make_embedder().eval()
    parts = [embedder(chunk) for chunk in split_packed(batch.packed, BUDGET)]
    torch.testing.assert_close(torch.cat(parts)[batch.packed.order_N], embedder(batch.packed))


def run(batch, tokens_per_chunk, *, checkpointing=False, lora=True, dropout=0.3):
    config = stage(batch_size=7, document_to_query_weight=0.5, attention_dropout=0.2 * bool(dropout))
    wrapped = Unwrapped(make_embedder(lora=lora, dropout=dropout).train())
    prepare_for_stage(wrapped.module, config, TrainingConfig(activation_checkpointing=checkpointing))
    torch.manual_seed(5)
    output = encode_and_backward(
        wrapped,
        batch.packed,
        lambda vectors: contrastive_loss(vectors, batch, config, StepTimer()),
        StepTimer(),
        tokens_per_chunk,
    )
    return output.loss.detach(), gradients(wrapped.module), wrapped


def chunks_with_graphs(batch, *, lora=True, dropout=0.3):
    """All chunks' graphs at once and one backward: what GradCache must equal, dropout included."""
    config = stage(batch_size=7, document_to_query_weight=0.5, attention_dropout=0.2 * bool(dropout))
    embedder = make_embedder(lora=lora, dropout=dropout).train()
    prepare_for_stage(embedder, config, TrainingConfig())
    torch.manual_seed(5)
    parts = [embedder(chunk) for chunk in split_packed(batch.packed, BUDGET)]
    loss = contrastive_loss(torch.cat(parts)[batch.packed.order_N], batch, config, StepTimer()).loss
    loss.backward()
    return loss.detach(), gradients(embedder)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("lora", "dropout"), [(True, 0.3), (True, 0.0), (False, 0.3), (False, 0.0)])
def test_loss_and_gradients_equal_one_backward(batch, lora, dropout, checkpointing):
    loss, expected = chunks_with_graphs(batch, lora=lora, dropout=dropout)
    found_loss, found, wrapped = run(batch, BUDGET, lora=lora, dropout=dropout, checkpointing=checkpointing)
    assert wrapped.boundaries == [False] * (len(wrapped.boundaries) - 1) + [True]
    assert len(wrapped.boundaries) == len(split_packed(batch.packed, BUDGET))
    torch.testing.assert_close(found_loss, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_dropout_is_drawn_at_all(batch):
    loss, _, _ = run(batch, BUDGET)
    without, _, _ = run(batch, BUDGET, dropout=0.0)
    assert not torch.isclose(loss, without)


def test_a_budget_for_everything_is_the_plain_step_to_the_bit(batch):
    plain_loss, plain, _ = run(batch, None)
    loss, found, wrapped = run(batch, 10**6)
    assert wrapped.boundaries == []
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(found[name], gradient) for name, gradient in plain.items())


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_a_loss_that_is_not_finite_leaves_no_finite_gradient(batch, budget):
    wrapped = Unwrapped(make_embedder().train())
    config = stage(batch_size=7)

    def loss_of(vectors):
        output = contrastive_loss(vectors, batch, config, StepTimer())
        return replace(output, loss=output.loss + torch.inf)  # whose gradient is finite

    output = encode_and_backward(wrapped, batch.packed, loss_of, StepTimer(), budget)
    assert torch.isinf(output.loss)
    assert all(torch.isnan(gradient).any() for gradient in gradients(wrapped.module).values())


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_no_step_waits_for_the_device(batch, budget):
    config = stage(batch_size=7, document_to_query_weight=0.5, matryoshka={"dimensions": [32, 8]})
    wrapped = Unwrapped(make_embedder(lora=True).train())
    prepare_for_stage(wrapped.module, config, TrainingConfig(activation_checkpointing=True))
    with RefuseHostWaits():
        encode_and_backward(
            wrapped,
            batch.packed,
            lambda vectors: contrastive_loss(vectors, batch, config, StepTimer()),
            StepTimer(),
            budget,
        )


def test_a_finite_loss_is_not_touched(batch):
    loss = torch.tensor(0.7, requires_grad=True)
    kept = spoiled_unless_finite(loss)
    kept.backward()
    assert torch.equal(kept, loss)
    assert loss.grad == 1.0
