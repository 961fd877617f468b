"""Pruning layer by layer: what each layer sees, and the memory it takes."""

import weakref

import pytest
import torch
from transformers import BertConfig, BertModel

from rayembed.compression import layers
from rayembed.compression.layers import Sparsity, linear_layers, prune_backbone
from rayembed.compression.pruning import Hessian, SquareSums, pruned
from rayembed.contract.packing import pack_ids
from rayembed.model.backbone import layers_of, prepare_backbone
from tests.tiny import make_backbone

BATCHES = [pack_ids([[3, 4, 5, 6], [7, 8]], [0, 0]), pack_ids([[9, 10, 11]], [0])]


def backbone(family: str = "mistral"):
    if family == "bert":
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = BertModel(BertConfig(vocab_size=258, **sizes), add_pooling_layer=False).eval()
    else:
        model = make_backbone()
    return prepare_backbone(model, "bidirectional")


def states_of(model, batch):
    with torch.no_grad():
        return model(
            input_ids=batch.input_ids_T[None], position_ids=batch.position_ids_T[None],
            packed_lengths=batch.lengths, use_cache=False,
        ).last_hidden_state  # fmt: skip


@pytest.mark.parametrize("family", ["mistral", "bert"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_each_linear_layer_is_pruned_for_what_the_pruned_layers_before_it_give(family, method):
    """Reference: the whole pruned model is run again for each linear layer."""
    found, expected = backbone(family), backbone(family)
    prune_backbone(found, BATCHES, Sparsity(method, "2:4"))
    kind = {"wanda": SquareSums, "sparsegpt": Hessian}[method]
    for layer in layers_of(expected):
        for linear in linear_layers(layer).values():
            statistics = kind(linear.in_features, torch.device("cpu"))
            with linear.register_forward_pre_hook(lambda _, inputs, s=statistics: s.add(inputs[0])):
                for batch in BATCHES:
                    states_of(expected, batch)
            linear.weight.data = pruned(linear.weight.data, "2:4", statistics)
    for name, weight in found.named_parameters():
        torch.testing.assert_close(weight, expected.get_parameter(name), msg=name)
    assert not torch.equal(states_of(found, BATCHES[0]), states_of(backbone(family), BATCHES[0]))


def test_one_hessian_is_in_memory_at_a_time(monkeypatch):
    alive, most, total = weakref.WeakSet(), [], []

    class Counted(Hessian):
        def __init__(self, width, device):
            super().__init__(width, device)
            alive.add(self)
            most.append(len(alive))
            total.append(width)

    monkeypatch.setitem(layers.STATISTICS, "sparsegpt", Counted)
    prune_backbone(backbone(), BATCHES, Sparsity("sparsegpt", "unstructured", 0.25))
    assert len(total) == 14
    assert max(most) == 1


def test_magnitude_needs_no_texts():
    model = backbone()
    prune_backbone(model, [], Sparsity("magnitude", "unstructured", 0.75))
    for linear in linear_layers(layers_of(model)).values():
        assert (linear.weight == 0).float().mean() == pytest.approx(0.75, abs=1e-3)
    assert (model.get_input_embeddings().weight[1:] != 0).all()
