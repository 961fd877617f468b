"""Several low-rank adapters beside one backbone's weights, one of them or none at work at a time."""

import hashlib
import re
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import file_digest
from rayembed.model.checkpoint import check_tensors

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
# How peft and transformers wrap the decoder that an adapter was trained on.
_WRAPPERS = ("base_model.model.", "model.")
_CHANGE_THE_MODEL = (
    "pissa",
    "olora",
    "corda",
    "loftq",
)  # what they start with is subtracted from it


class Adapters:
    """The adapters of a backbone; to be used from one thread at a time.

    Attributes:
        chosen: name of the one at work; empty: none.
    """

    def __init__(self, backbone: PreTrainedModel):
        """`backbone` is complete, on its device and in its number format."""
        self._backbone = backbone
        self._slots: dict[str, str] = {}
        self.chosen = ""

    def add(self, name: str, folder: Path) -> str:
        """Load a LoRA adapter that peft saved; returns the digest of its files.

        Raises:
            CheckpointError: the folder has no LoRA adapter, or one of another backbone.
        """
        slot = f"adapter{len(self._slots)}"
        try:
            config = self._resolved(_read_config(folder), folder)
            with warnings.catch_warnings(action="ignore"):  # peft warns of a second adapter
                inject_adapter_in_model(config, self._backbone, adapter_name=slot)
            self._load(slot, folder)
        except CheckpointError:
            raise
        except (ValueError, TypeError, KeyError, re.error, SafetensorError) as error:
            raise CheckpointError(
                f"adapter {folder} does not fit the model or has damaged files ({error!r}); save it with peft"
            ) from error
        self._slots[name] = slot
        self._apply("")
        digests = file_digest(folder / _CONFIG) + file_digest(folder / _WEIGHTS)
        return hashlib.sha256(digests.encode()).hexdigest()

    def _resolved(self, config: LoraConfig, folder: Path) -> LoraConfig:
        """The settings with every layer by its name here: patterns match names where peft trained it.

        A pattern `model.layers.[01].*q_proj` and `alpha_pattern: {model.layers.0.self_attn.q_proj: 64}` mean
        the decoder inside a language model. Here its layers are layers.0 and so on.
        """
        with safe_open(folder / _WEIGHTS, framework="pt") as weights:
            inside = any(name.startswith("base_model.model.model.") for name in weights.keys())  # noqa: SIM118
        linear = [
            name
            for name, module in self._backbone.named_modules()
            if isinstance(module, nn.Linear | LoraLayer) and not re.search(r"\.(lora_|base_layer)", name)
        ]
        there = {name: f"model.{name}" if inside else name for name in linear}
        targets = [
            name
            for name, known in there.items()
            if config.target_modules == "all-linear" or check_target_module_exists(config, known)
        ]
        if not targets:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise CheckpointError(
                f"adapter {folder} does not fit the model: no linear layer is named as target_modules "
                f"{config.target_modules} say; there are {known}"
            )
        settings = {}
        for pattern, default in (("rank_pattern", config.r), ("alpha_pattern", config.lora_alpha)):
            declared = getattr(config, pattern) or {}
            settings[pattern] = {
                re.escape(name): declared.get(get_pattern_key(list(declared), there[name]), default)
                for name in targets
            }
        config.target_modules = targets
        config.rank_pattern, config.alpha_pattern = settings["rank_pattern"], settings["alpha_pattern"]
        config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
        return config

    def choose(self, name: str) -> None:
        """Let the adapter of that name take part from now on; the empty name is the backbone alone."""
        if name != self.chosen:
            self._apply(name)

    def _apply(self, name: str) -> None:
        active = [self._slots[name]] if name else []
        for module in self._backbone.modules():
            if isinstance(module, LoraLayer):
                module.set_adapter(active, inference_mode=True)
        self.chosen = name

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
    if config.alora_invocation_tokens or str(config.init_lora_weights).startswith(_CHANGE_THE_MODEL):
        raise CheckpointError(
            f"adapter {folder} changes the model's own weights, or waits for tokens that call it "
            f"(init_lora_weights: {config.init_lora_weights}); save a PiSSA or OLoRA adapter with "
            "path_initial_model_for_weight_conversion, or merge it into a checkpoint of its own"
        )
    config.inference_mode = True
    return config


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
