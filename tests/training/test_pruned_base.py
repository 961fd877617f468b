"""A run that begins with a pruned checkpoint: what it takes over, and weights that stay zero."""

import numpy as np
import pytest
import torch

from rayembed.common.errors import ConfigError
from rayembed.compression.layers import Sparsity, linear_layers, prune_backbone
from rayembed.contract import Contract
from rayembed.contract.packing import pack_ids
from rayembed.contract.ranges import VectorRanges
from rayembed.model.base_model import prepare_base_model, save_untrained
from rayembed.model.checkpoint import load_model, read_manifest, save_model
from rayembed.training.handover import FinishedStage, ModelExport, merge_into_base
from rayembed.training.model import ModelSpec, trainable_weights
from rayembed.training.start import step_of
from tests.tiny import make_tokenizer
from tests.training.models import make_embedder
from tests.training.recipes import tiny_recipe
from tests.training.sources import stage, stream_spec
from tests.training.stages import stage_of
from tests.training.test_handover import save

LORA = {"rank": 2, "alpha": 8, "dropout": 0.0}
PROVENANCE = {"sources": ["nq"], "licences": {"nq": "CC0"}}
BATCH = pack_ids([[3, 4, 5, 6], [7, 8], [9]], [0, 0, 0])


@pytest.fixture
def checkpoint(home):
    """Its head has weights that no seed gives."""
    embedder = make_embedder()
    prune_backbone(embedder.backbone, [], Sparsity("magnitude", "2:4"))
    torch.nn.init.normal_(embedder.pooling.latents, std=0.3)
    save_model(home / "pruned", embedder, make_tokenizer(), Contract(max_length=48), provenance=PROVENANCE)
    return home / "pruned"


def zeros_of(backbone):
    return {name: layer.weight == 0 for name, layer in linear_layers(backbone.layers).items()}


def test_a_checkpoint_as_base_gives_contract_pooling_and_head(checkpoint, home):
    config = tiny_recipe(checkpoint, contract={"append_eos": False}, model={})
    assert config.contract == Contract(max_length=48, append_eos=False)
    assert config.model == load_model(checkpoint).embedder.config
    base = prepare_base_model(str(checkpoint), home / "models")
    assert base == prepare_base_model(str(checkpoint), home / "models")
    expected = load_model(checkpoint).embedder(BATCH)
    torch.testing.assert_close(ModelSpec.of(config, base).build(torch.float32).eval()(BATCH), expected)
    save_untrained(base, home / "untrained", config.contract, config=config.model)
    torch.testing.assert_close(load_model(home / "untrained").embedder(BATCH), expected)


@pytest.mark.parametrize(("lora", "merges"), [(None, False), (LORA, False), (LORA, True)])
def test_zeros_stay_zero_and_the_export_computes_what_was_trained(checkpoint, home, lora, merges):
    config = tiny_recipe(checkpoint, keep_zeros=True, lora=lora)
    spec = ModelSpec.of(config, prepare_base_model(str(checkpoint), home / "models"))
    model = spec.build(torch.float32)
    before = zeros_of(load_model(checkpoint).embedder.backbone)
    start = trainable_weights(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(BATCH)[:, :4].sum().backward()
        optimizer.step()
    weights = trainable_weights(model)
    assert all(not torch.equal(weights[name], start[name]) for name in start if "_proj" in name)
    finished = [FinishedStage("one", "contrastive", 3, False, save(home / "one", weights))]
    if merges:
        spec = merge_into_base(spec, finished, home / "merged")
        heads = {name: value for name, value in weights.items() if "pooling" in name}
        finished = [FinishedStage("one", "contrastive", 3, False, save(home / "two", heads))]
    ModelExport.of(config).write(spec, finished, home / "model")
    exported = load_model(home / "model").embedder
    provenance = read_manifest(home / "model")["provenance"]
    assert (provenance["sources"], provenance["licences"]) == (["nq", "one", "two"], {"nq": "CC0"})
    assert before.keys() == zeros_of(exported.backbone).keys()
    for name, zeros in zeros_of(exported.backbone).items():
        assert torch.equal(zeros, before[name]), name
    torch.testing.assert_close(exported(BATCH), model.eval()(BATCH), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quantisation", [None, {"formats": ["binary"]}])
def test_ranges_of_the_base_are_kept_where_vectors_are_trained_for_them(home, quantisation):
    embedder, vectors = make_embedder(), np.random.default_rng(0).standard_normal((9, 32))
    ranges = VectorRanges.of(vectors)
    contract = Contract(max_length=48, vector_ranges=ranges)
    save_model(home / "measured", embedder, make_tokenizer(), contract)
    settings = stage(quantisation=quantisation).model_dump(mode="json")
    config = tiny_recipe(home / "measured", stages=[settings])
    assert config.contract.vector_ranges is None
    with pytest.raises(ConfigError, match=r"vector_ranges is measured by .*; remove it"):
        tiny_recipe(home / "measured", contract=contract.model_dump())
    base = prepare_base_model(str(home / "measured"), home / "models")
    run = stage_of(config, base, stream_spec(home, base, config.stages[0]), home)
    kept = ranges if quantisation else None
    assert step_of(run, torch.device("cpu"))._ranges == kept
    weights = trainable_weights(run.model.build(torch.float32))
    finished = [FinishedStage("one", "contrastive", 1, False, save(home / "one", weights))]
    run.export.write(run.model, finished, home / "model")
    assert Contract.load(home / "model").vector_ranges == kept


def test_dropout_of_adapters_and_kept_zeros_exclude_each_other():
    with pytest.raises(ConfigError, match=r"lora\.dropout is 0\.1 and keep_zeros .* set lora\.dropout to 0"):
        tiny_recipe(keep_zeros=True, lora={"dropout": 0.1})
