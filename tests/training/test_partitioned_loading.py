"""ZeRO 3: a backbone lies in parts on all ranks from the moment it is read."""

import pytest
import torch
from safetensors.torch import load_file

from rayembed.contract.packing import pack_ids
from tests.tiny import make_backbone, make_tokenizer
from tests.training.recipes import tiny_recipe
from tests.training.sources import stage
from tests.training.spawn import run_ranks
from tests.training.stages import stage_of

TEXTS = pack_ids([[5, 6, 7, 8], [9, 10, 11]], [1, 1])


def start(folder, zero_stage, dtype, lora, resumed=None):
    from rayembed.training.start import start_model

    settings = stage(batch_size=4)
    config = tiny_recipe(
        folder,
        stages=[settings.model_dump(mode="json")],
        lora={"rank": 2} if lora else None,
        training={"zero_stage": zero_stage, "workers": 2},
    )
    run = stage_of(config, folder, None, folder)
    return start_model(run, resumed, torch.device("cpu"), dtype, rows_per_rank=2)


def in_parts_and_whole(rank, world_size, folder):
    """What a rank holds and computes at ZeRO 3 and at ZeRO 1, before and after a step."""
    from rayembed.model import backbone as loading
    from rayembed.training.checkpoint import TrainingState
    from rayembed.training.deepspeed import read_state

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for lora in (True, False):
            for zero_stage in (1, 3):
                held = []
                prepare = loading.prepare_backbone

                def noting(model, *options, held=held, prepare=prepare):
                    held.append(sum(parameter.numel() for parameter in model.parameters()))
                    return prepare(model, *options)

                loading.prepare_backbone = noting
                wrapped = start(folder, zero_stage, dtype, lora)
                loading.prepare_backbone = prepare
                vectors = wrapped(TEXTS)
                wrapped.backward(vectors[:, :3].sum())
                wrapped.step()
                weights, moments = read_state(wrapped)
                state = TrainingState("test", 1, 1, weights, moments)
                wrapped.destroy()
                again = start(folder, zero_stage, dtype, lora, state)
                found[f"{dtype} {lora} {zero_stage}"] = {
                    "held": torch.tensor(held[0]),
                    "vectors": vectors.detach(),
                    "resumed": again(TEXTS).detach(),
                    "weights": weights,
                }
                again.destroy()
    return found


@pytest.mark.slow
def test_a_backbone_in_parts_computes_and_resumes_as_a_whole_one(tmp_path):
    backbone = make_backbone()
    backbone.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    size = sum(parameter.numel() for parameter in backbone.parameters())
    assert size == sum(value.numel() for value in load_file(tmp_path / "model.safetensors").values())
    for results in run_ranks(in_parts_and_whole, 2, tmp_path, tmp_path):
        for name, whole in results.items():
            if name.endswith("3"):
                continue
            parts = results[name[:-1] + "3"]
            assert whole["held"] == size
            assert parts["held"] == 0, "what a rank keeps is in parts of its own"
            assert torch.equal(parts["vectors"], whole["vectors"]), name
            assert not torch.equal(whole["vectors"], whole["resumed"])
            limit = 1e-6 if "float32" in name else 1e-2
            torch.testing.assert_close(parts["resumed"], whole["resumed"], atol=limit, rtol=0)
            assert parts["weights"].keys() == whole["weights"].keys()
            for key, value in whole["weights"].items():
                torch.testing.assert_close(parts["weights"][key], value, atol=limit, rtol=0)
