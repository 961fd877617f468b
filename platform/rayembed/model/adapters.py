"""Several low-rank adapters beside one backbone's weights, one of them or none at work at a time."""

import hashlib
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import PreTrainedModel

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import file_digest
from rayembed.model.checkpoint import check_tensors

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
# How peft and transformers wrap the decoder that an adapter was trained on.
_WRAPPERS = ("base_model.model.", "model.")


class Adapters:
    """The adapters of a backbone; to be used from one thread at a time."""

    def __init__(self, backbone: PreTrainedModel):
        """`backbone` is complete, on its device and in its number format."""
        self._backbone = backbone
        self._slots: dict[str, str] = {}
        self._chosen = ""

    def add(self, name: str, folder: Path) -> str:
        """Load a LoRA adapter that peft saved; returns the digest of its files.

        Raises:
            CheckpointError: the folder has no LoRA adapter, or one of another backbone.
        """
        slot = f"adapter{len(self._slots)}"
        config = _read_config(folder)
        try:
            with warnings.catch_warnings(action="ignore"):  # peft warns of a second adapter
                inject_adapter_in_model(config, self._backbone, adapter_name=slot)
        except ValueError as error:
            raise CheckpointError(f"adapter {folder} does not fit the model: {error}") from error
        self._load(slot, folder)
        self._slots[name] = slot
        self._apply("")
        digests = file_digest(folder / _CONFIG) + file_digest(folder / _WEIGHTS)
        return hashlib.sha256(digests.encode()).hexdigest()

    def choose(self, name: str) -> None:
        """Let the adapter of that name take part from now on; the empty name is the backbone alone."""
        if name != self._chosen:
            self._apply(name)

    def _apply(self, name: str) -> None:
        active = [self._slots[name]] if name else []
        for module in self._backbone.modules():
            if isinstance(module, LoraLayer):
                module.set_adapter(active, inference_mode=True)
        self._chosen = name

    def _load(self, slot: str, folder: Path) -> None:
        own = {
            name.replace(f".{slot}.", "."): parameter
            for name, parameter in self._backbone.named_parameters()
            if f".{slot}." in name
        }
        stored = {_plain(name): tensor for name, tensor in load_file(folder / _WEIGHTS).items()}
        check_tensors(
            {name: tuple(tensor.shape) for name, tensor in stored.items()},
            {name: tuple(parameter.shape) for name, parameter in own.items()},
            str(folder / _WEIGHTS),
        )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(stored[name])
        for module in self._backbone.modules():
            if isinstance(module, LoraLayer) and slot in module.lora_A:
                weight = module.get_base_layer().get_parameter("weight")
                for factor in (module.lora_A[slot], module.lora_B[slot]):
                    factor.to(device=weight.device, dtype=weight.dtype)


def _read_config(folder: Path) -> LoraConfig:
    missing = [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is not an adapter: it has no {missing[0]}")
    config = PeftConfig.from_pretrained(str(folder))
    if (
        not isinstance(config, LoraConfig)
        or config.modules_to_save
        or config.use_dora
        or config.bias != "none"
    ):
        raise CheckpointError(
            f"{folder} is not a plain LoRA adapter (no DoRA, no biases, no modules_to_save); merge it into a "
            "checkpoint of its own"
        )
    config.inference_mode = True
    return config


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
