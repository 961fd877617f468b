"""Loading a backbone for packed texts: decoders without their causal mask, and encoders.

Llama loads as Mistral, which has the same tensors; MPNet as a class of this library.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
import transformers  # imports models only as they are named, for seconds: name none at the top of a file
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.integrations import is_deepspeed_zero3_enabled

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import fetch
from rayembed.model.attention import PACKED_ATTENTION, packed_attention_interface
from rayembed.model.packed import read_packed

# Model type -> class of transformers, or module:class of another. All hand unknown arguments on to attention;
# decoders read `config.is_causal`.
DECODERS = {
    "mistral": "MistralModel",
    "llama": "MistralModel",
    "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model",
    "gemma3_text": "Gemma3TextModel",
    "ministral3": "Ministral3Model",
}
ENCODERS = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "mpnet": "rayembed.model.mpnet:MPNetModel",
    "modernbert": "ModernBertModel",
}
MODEL_CLASSES = DECODERS | ENCODERS
_LOCAL_WINDOWS = ("gemma3_text", "modernbert")  # layers without a full view alternate with others
POSITIONS_BEHIND_PADDING = ("roberta", "xlm-roberta", "mpnet")  # they begin behind the padding token's id
_LEARNED_POSITIONS = ("bert", *POSITIONS_BEHIND_PADDING)  # there is a last one

_SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "head_dim",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "rope_parameters",
)


def load_backbone(
    name: str | Path,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    attention: Literal["bidirectional", "causal"] = "bidirectional",
    layers: int | None = None,
    device: torch.device | str = "cpu",
) -> "transformers.PreTrainedModel":
    """Load a model without its language-model head, ready for packed batches.

    Args:
        name: local Hugging Face folder, or a hub id where a network exists.
        dtype: type of the weights; auto: as they are stored.
        attention: bidirectional removes the causal mask of a decoder; encoders have none.
        layers: keep only the first layers; None keeps all.
        device: where each weight goes as it is read. Inside `partitioned_loading` of training each rank keeps
            its part alone, and only rank 0 reads values.

    Raises:
        CheckpointError: not a model folder, another architecture, causal attention of an encoder, or fewer
            layers than asked for.
    """
    config = _supported_config(name, attention, layers)
    model = _load_weights(_model_class(config), name, config, dtype, torch.device(device))
    return prepare_backbone(model, attention)


def empty_backbone(
    name: str | Path,
    *,
    attention: Literal["bidirectional", "causal"] = "bidirectional",
    layers: int | None = None,
) -> "transformers.PreTrainedModel":
    """`load_backbone` on the meta device: names, shapes and configuration, and no weights in memory."""
    config = _supported_config(name, attention, layers)
    with torch.device("meta"):
        try:
            model = _model_class(config)(config, **_without_pooler(config))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"config.json of base model {name} has a value unknown to its architecture ({error!r})"
            ) from error
    return prepare_backbone(model, attention)


def _model_class(config: Any) -> Any:
    module, _, name = MODEL_CLASSES[config.model_type].rpartition(":")
    return getattr(import_module(module or "transformers"), name)


def _without_pooler(config: Any) -> dict[str, bool]:
    """Argument that leaves out the layer on top of BERT's first token, which no pooling head here takes."""
    return {"add_pooling_layer": False} if config.model_type in _LEARNED_POSITIONS else {}


def _supported_config(
    name: str | Path, attention: Literal["bidirectional", "causal"], layers: int | None
) -> Any:
    config = read_config(name)
    if config.model_type not in MODEL_CLASSES:
        raise CheckpointError(
            f"base model {name} is of architecture {config.model_type!r}; "
            f"supported are {', '.join(MODEL_CLASSES)}"
        )
    if (stored := getattr(config, "quantization_config", None)) is not None:
        method = dict(vars(stored) if hasattr(stored, "quant_method") else stored).get("quant_method")
        method = method or "bitsandbytes"  # older versions of it name no method
        if method != "gguf":
            raise CheckpointError(
                f"base model {name} is stored quantised ({method}), and training and packed attention need "
                "plain weights; give the folder of the original model, or save `model.dequantize()` of "
                "transformers"
            )
        del config.quantization_config  # transformers saves what it reads from a GGUF file as plain weights
    if attention == "causal" and config.model_type in ENCODERS:
        raise CheckpointError(
            f"base model {name} is an encoder ({config.model_type}), whose tokens see the whole text; set "
            "model.attention to bidirectional"
        )
    if layers is not None and not 1 <= layers <= config.num_hidden_layers:
        raise CheckpointError(
            f"base model {name} has {config.num_hidden_layers} layers, {layers} were asked for"
        )
    if config.model_type == "llama":
        _check_biases(config)
        config = mistral_config(config)
    config.num_hidden_layers = layers or config.num_hidden_layers
    _fit_layer_types(config)
    return config


def prepare_backbone(
    model: "transformers.PreTrainedModel", attention: Literal["bidirectional", "causal"]
) -> "transformers.PreTrainedModel":
    """Set the direction of attention and switch to packed attention.

    `config.is_causal` is transformers' supported switch. Setting `is_causal` on the attention modules alone
    stays silently causal as soon as a batch has padding. Gemma has a switch of its own, which windows follow.
    """
    is_causal = attention == "causal"
    _fit_layer_types(model.config)
    if model.config.model_type == "gemma3_text":
        _turn_windows(model, is_causal=is_causal)
    else:
        model.config.is_causal = is_causal
    if model.config.model_type in POSITIONS_BEHIND_PADDING:
        embeddings = model.get_submodule("embeddings")
        if _from_first_position not in embeddings._forward_pre_hooks.values():
            embeddings.register_forward_pre_hook(_from_first_position, with_kwargs=True)
    transformers.AttentionInterface.register(PACKED_ATTENTION, packed_attention_interface)
    model.set_attn_implementation(PACKED_ATTENTION)
    return model


def _from_first_position(embeddings: Any, inputs: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    return inputs, options | {"position_ids": options["position_ids"] + embeddings.padding_idx + 1}


def most_positions(name: str | Path) -> int | None:
    """Longest text in tokens that a model has learned positions for; None where they are computed."""
    config = read_config(name)
    if config.model_type not in _LEARNED_POSITIONS:
        return None
    behind = config.model_type in POSITIONS_BEHIND_PADDING
    return config.max_position_embeddings - (config.pad_token_id + 1 if behind else 0)


def layers_of(backbone: Any) -> Any:
    """The layers, first to last."""
    return backbone.encoder.layer if hasattr(backbone, "encoder") else backbone.layers


def llama_to_mistral(model: "transformers.LlamaModel") -> "transformers.MistralModel":
    """Copy a Llama model into a Mistral one; the two compute the same function when there are no biases.

    Raises:
        CheckpointError: the Llama variant has biases, which Mistral lacks.
    """
    from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

    _check_biases(model.config)
    with torch.device("meta"):  # nothing is made up that is replaced at once
        converted = transformers.MistralModel(mistral_config(model.config))
    converted.load_state_dict(model.state_dict(), strict=True, assign=True)
    converted.rotary_emb = MistralRotaryEmbedding(converted.config).to(model.device)
    return converted.eval()


def _check_biases(llama_config: Any) -> None:
    if getattr(llama_config, "attention_bias", False) or getattr(llama_config, "mlp_bias", False):
        raise CheckpointError("this Llama model has bias terms, which the Mistral architecture cannot hold")


def mistral_config(llama_config: Any) -> "transformers.MistralConfig":
    """Mistral configuration with the sizes and rotary parameters of a Llama one, and no sliding window."""
    return transformers.MistralConfig(
        **{key: getattr(llama_config, key) for key in _SHARED_KEYS}, sliding_window=None
    )


def _fit_layer_types(config: Any) -> None:
    """A decoder whose layers are alike attends to the full text, as the published NV-Embed does."""
    if config.model_type in DECODERS and config.model_type not in _LOCAL_WINDOWS:
        config.sliding_window = None
        if getattr(config, "layer_types", None):
            config.layer_types = ["full_attention"] * config.num_hidden_layers
    elif getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]


def _turn_windows(model: Any, *, is_causal: bool) -> None:
    """Lay Gemma's windows around a token or before it, in the two ways that its configuration counts them.

    A causal window of 512 is the token and 511 before it. Turned around, it is 256 tokens on each side, which
    the configuration in memory calls 257 and the one on disk 512 still.
    """
    config = model.config
    config.is_causal = True  # False would make other windows of the same number
    if bool(config.use_bidirectional_attention) == is_causal:
        window = config.sliding_window
        config.sliding_window = 2 * (window - 1) if is_causal else window // 2 + 1
        config.use_bidirectional_attention = not is_causal
    for layer in model.layers:
        if layer.self_attn.is_sliding:
            layer.self_attn.sliding_window = config.sliding_window


def read_config(name: str | Path) -> Any:
    """Configuration of a model folder or hub id, as transformers reads it.

    Raises:
        CheckpointError: there is none.
    """
    folder = fetch(name, weights=False)
    try:
        return transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        if (folder / "adapter_config.json").is_file():
            raise CheckpointError(
                f"base model {name} is an adapter; merge it into its base model (`merge_and_unload` of peft)"
            ) from error
        raise CheckpointError(
            f"base model {name} cannot be read; give a local Hugging Face folder with config.json and "
            f"safetensors weights, or a hub id where a network exists ({' '.join(str(error).split())[:300]})"
        ) from error


def _load_weights(
    model_class: Any,
    name: str | Path,
    config: Any,
    dtype: torch.dtype | Literal["auto"],
    device: torch.device,
) -> Any:
    folder = fetch(name)
    packed = read_packed(folder)
    try:
        model, report = model_class.from_pretrained(
            None if packed else str(folder),
            config=config,
            state_dict=packed,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            device_map=None if device.type == "cpu" or is_deepspeed_zero3_enabled() else {"": device},
            **_without_pooler(config),
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"weights of {name} cannot be loaded ({str(error).splitlines()[0]}); download or save them again "
            "as safetensors"
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{name} lacks {len(missing)} tensors, the first is {missing[0]}; the folder is incomplete"
        )
    if wrong := sorted(report["mismatched_keys"]):
        key, stored, wanted = wrong[0]
        raise CheckpointError(
            f"{name}: {len(wrong)} tensors have other shapes than config.json says, the first is {key}, "
            f"{tuple(stored)} in place of {tuple(wanted)}; take both files from the same model"
        )
    if extra := [key for key in sorted(report["unexpected_keys"]) if _is_inside_a_layer(key, model)]:
        raise CheckpointError(
            f"{name} has {len(extra)} tensors for layers that cannot take them, the first is {extra[0]}; "
            "merge adapters into the weights, or correct config.json"
        )
    return model


def _is_inside_a_layer(key: str, model: torch.nn.Module) -> bool:
    """Whether a tensor belongs to a module with weights, such as `layers.0.mlp.up_proj.lora_A.weight`.

    Heads, buffers and layers that were cut away do not.
    """
    modules = dict(model.named_modules())
    parent = key.removeprefix("model.")
    while parent and parent not in modules:
        parent = parent.rpartition(".")[0]
    return bool(parent) and bool(next(modules[parent].parameters(recurse=False), None) is not None)
