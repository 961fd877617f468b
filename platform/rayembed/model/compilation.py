"""Compiled kernels for what happens to each token alone: norms and feed-forward networks.

Attention stays as it is: its kernels are fused already, and its shapes follow the lengths of the texts.
"""

import os
import shutil

import transformers

from rayembed.common.errors import ResourceError
from rayembed.model.backbone import layers_of

_TOKEN_WISE = {
    *("input_layernorm", "post_attention_layernorm", "mlp"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),  # Gemma
    *("intermediate", "output"),  # BERT and its kin
    *("attn_norm", "mlp_norm"),  # ModernBERT
}


def check_compiler(device: str) -> None:
    """Raise ResourceError where kernels for a type of device need a C++ compiler and there is none."""
    compiler = os.environ.get("CXX", "g++")
    if device == "cpu" and shutil.which(compiler) is None:
        raise ResourceError(
            f"compiled kernels need the C++ compiler {compiler} on a CPU; install it or leave compiled off"
        )


def compile_token_wise_parts(backbone: "transformers.PreTrainedModel") -> None:
    """Compile norms and feed-forward networks with torch's compiler, in place.

    The number of tokens of a row is a variable of the kernels, so that they are built once, in the first
    forward pass, and shared by all layers. Call it when the modules are those that will compute.
    """
    for layer in layers_of(backbone):
        for name, part in layer.named_children():
            if name in _TOKEN_WISE:
                part.compile(dynamic=True)
    for name in ("norm", "final_norm"):
        if hasattr(backbone, name):
            backbone.get_submodule(name).compile(dynamic=True)
