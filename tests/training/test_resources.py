"""The operations that utilization counts, against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rayembed.contract.packing import pack_ids
from rayembed.training.resources import Utilization, measured_peak, nominal_peak
from tests.training.models import make_embedder

CPU = torch.device("cpu")


@pytest.mark.parametrize("lora", [False, True])
def test_counted_operations_are_those_of_a_step(lora):
    # In bf16 short texts attend by matrix products, which torch counts; it does not count fused kernels.
    model = make_embedder(lora=lora, dtype=torch.bfloat16).train()
    batch = pack_ids([list(range(1, 49))] * 3, [0] * 3)
    with FlopCounterMode(display=False) as counter:
        model(batch).sum().backward()
    torchs = sum(counter.get_flop_counts()["EmbeddingModel.backbone"].values())
    utilization = Utilization(model, CPU)
    ours = utilization.of(batch, seconds=1.0)[0] * utilization.peak
    # Torch has no gradient of the first layer's inputs, which nobody needs when adapters are trained.
    assert ours == pytest.approx(torchs, rel=0.1)


def test_the_peak_is_a_speed():
    assert 1e8 < measured_peak(CPU, torch.float32) < 1e15


def test_the_peak_is_that_of_random_numbers(monkeypatch):
    seen, product = [], torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append(a) or product(a, b))
    measured_peak(CPU, torch.float32)
    assert seen[0].std() > 0.5


def test_the_nominal_peak_goes_by_the_name_of_the_gpu(monkeypatch):
    assert nominal_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert nominal_peak("NVIDIA H100 PCIe") == 756e12
    assert nominal_peak("NVIDIA L40S") == 362e12
    assert nominal_peak("NVIDIA L4") == 121e12
    assert nominal_peak("Some other processor") is None
    utilization = Utilization(make_embedder(), CPU)
    batch = pack_ids([[1, 2, 3]], [0])
    assert utilization.of(batch, 1.0)[1] is None
    utilization.nominal_peak = 2 * utilization.peak
    measured, nominal = utilization.of(batch, 1.0)
    assert nominal == measured / 2
