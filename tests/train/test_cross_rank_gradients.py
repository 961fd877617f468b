"""Parameter gradients at 1, 2 and 3 real ranks equal those of the whole batch in one process."""

import pytest
import torch
import torch.distributed as dist

from rayembed.data.stream import local_batches
from rayembed.model.backbone import prepare_backbone
from rayembed.model.configuration import LatentPoolingConfig, ModelConfig
from rayembed.model.embedder import Embedder
from rayembed.train.step import contrastive_step
from tests.tiny import make_backbone
from tests.train.sources import stage, stream_spec
from tests.train.spawn import run_ranks


def make_embedder() -> Embedder:
    torch.manual_seed(0)
    config = ModelConfig(
        pooling=LatentPoolingConfig(num_latents=4, num_heads=2, head_width=8, init="published")
    )
    return Embedder(prepare_backbone(make_backbone(), "bidirectional"), config)


def averaged_gradients(rank, world_size, spec, config):
    """Loss and gradients of one step, averaged over ranks as DeepSpeed does."""
    embedder = make_embedder()
    [batch] = local_batches(spec, start=1, stop=2, rank=rank, world_size=world_size)
    output = contrastive_step(embedder, batch, config)
    output.loss.backward()
    results = {"loss": output.loss.detach(), "rows": output.rows_by_source_S}
    results |= {name: parameter.grad for name, parameter in embedder.named_parameters()}
    if world_size > 1:
        for name, value in results.items():
            dist.all_reduce(value)
            if name != "rows":
                value /= world_size
    return results


@pytest.mark.parametrize("other_direction", [0.0, 0.5])
@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_equal_one_process(tmp_path, tiny_base, world_size, negatives, other_direction):
    # Seven rows do not divide by two or three: ranks hold different numbers of rows and documents.
    config = stage(batch_size=7, negatives=negatives, document_to_query_weight=other_direction)
    spec = stream_spec(tmp_path, tiny_base, config)
    expected = averaged_gradients(0, 1, spec, config)
    if world_size == 1:
        # The plain formula over the whole batch, without any of the distributed code.
        [batch] = local_batches(spec, start=1, stop=2)
        embedder = make_embedder()
        vectors = embedder(batch.packed)
        query, document = vectors[: batch.num_queries], vectors[batch.num_queries :]
        scores = (query @ document.T / config.temperature).masked_fill(~batch.allowed_QK, -torch.inf)
        loss = torch.nn.functional.cross_entropy(scores, batch.target_Q)
        if other_direction:
            positives = document[batch.target_Q]
            competing = batch.competing_QB | torch.eye(batch.num_queries, dtype=torch.bool)
            backwards = (positives @ query.T / config.temperature).masked_fill(~competing, -torch.inf)
            own = torch.arange(batch.num_queries)
            loss = loss + other_direction * torch.nn.functional.cross_entropy(backwards, own)
        loss.backward()
        results = [{"loss": loss.detach(), "rows": expected["rows"]}]
        results[0] |= {name: parameter.grad for name, parameter in embedder.named_parameters()}
    else:
        results = run_ranks(averaged_gradients, world_size, tmp_path, spec, config)
    assert expected["rows"].sum() == 7
    for result in results:
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                result[name], value, atol=2e-5, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
