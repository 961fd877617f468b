"""Packed weights: what they become, how small, and that a checkpoint of them loads."""

import pytest
import torch

from rayembed.common.errors import CheckpointError
from rayembed.contract import Contract
from rayembed.contract.packing import pack_ids
from rayembed.model.backbone import layers_of
from rayembed.model.checkpoint import load_model, save_model
from rayembed.model.export.shards import weight_files
from rayembed.model.packed import WEIGHT_FORMATS, eight_bits, pack, unpack
from tests.tiny import make_tokenizer
from tests.training.models import make_embedder

FARTHEST = {
    "stored": 0,
    "bf16": 2**-8,
    "int8": 0.51 / 127,
    "fp8_e4m3": 2**-4,
    "fp8_e5m2": 2**-3,
}  # share of the largest


def pruned_embedder(share: float = 0.5):
    embedder = make_embedder()
    for layer in layers_of(embedder.backbone).modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data[:, : int(share * layer.in_features)] = 0
    return embedder


@pytest.mark.parametrize("form", WEIGHT_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_checkpoint_is_smaller_and_computes_the_nearest_numbers(tmp_path, form, dtype):
    embedder = pruned_embedder().to(dtype)
    for name, packed in (("plain", None), ("packed", form)):
        save_model(tmp_path / name, embedder, make_tokenizer(), Contract(max_length=64), packed=packed)
    plain, packed = (load_model(tmp_path / name, dtype="auto" if dtype is torch.float32 else dtype).embedder
                     for name in ("plain", "packed"))  # fmt: skip
    linear = 0
    for name, weight in plain.backbone.named_parameters():
        found = packed.backbone.get_parameter(name)
        assert found.dtype == weight.dtype
        error = (found.float() - weight.float()).abs() / weight.float().abs().amax(dim=-1, keepdim=True)
        if "_proj" in name:
            linear += weight.numel()
            assert torch.equal(found == 0, weight == 0) or form == "int8"
            rounding = 2**-8 if dtype is torch.bfloat16 and form != "stored" else 0
            assert error.max() <= FARTHEST[form] + rounding
        else:
            assert torch.equal(found, weight)
    sizes = [sum(file.stat().st_size for file in (tmp_path / name / "backbone").glob("*.safetensors"))
             for name in ("plain", "packed")]  # fmt: skip
    itemsize = {"stored": dtype.itemsize, "bf16": 2}.get(form, 1)
    saved = linear * dtype.itemsize - (linear / 2 * itemsize + linear / 8)
    assert sizes[0] - sizes[1] == pytest.approx(saved, abs=6000)  # names and scales
    batch = pack_ids([[3, 4, 5], [6]], [0, 0])
    assert (packed(batch) * plain(batch)).sum(dim=1).min() > 0.99
    with pytest.raises(CheckpointError, match="has packed weights, which other libraries do not read"):
        weight_files(tmp_path / "packed" / "backbone")


def test_eight_bit_numbers_are_the_nearest_and_few_zeros_are_not_left_out():
    weight = torch.tensor([[0, 0.5, 0, 0, -1, 0, 0, 0.25], [0, 0, 0, 0, 0, 0, 0, 0]])
    values, scales = eight_bits(weight, "int8")
    assert values.tolist() == [[0, 64, 0, 0, -127, 0, 0, 32], [0] * 8]
    assert scales[0] == pytest.approx(1 / 127)
    layer = torch.nn.Linear(8, 2, bias=False)
    layer.weight.data = weight
    packed = pack(layer, {"a.weight": layer.weight}, "int8")
    assert packed["a.weight.values"].tolist() == [64, -127, 32]
    assert packed["a.weight.kept"].flatten().tolist() == [0b01001001, 0]
    torch.testing.assert_close(unpack(packed)["a.weight"], weight, atol=0.5 / 127, rtol=0)
    layer.weight.data = torch.ones(2, 8)
    assert pack(layer, {"a.weight": layer.weight}, "stored").keys() == {"a.weight.values"}
    weight = torch.randn(3, 64)
    for form in ("fp8_e4m3", "fp8_e5m2"):
        values, scales = eight_bits(weight, form)
        numbers = torch.arange(256).to(torch.uint8).view(values.dtype).float()
        numbers = numbers[numbers.isfinite()]
        distances = (weight / scales[:, None])[..., None] - numbers
        least = distances.abs().min(dim=-1).values
        torch.testing.assert_close((values.float() - weight / scales[:, None]).abs(), least)
