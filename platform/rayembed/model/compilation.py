"""Compiled kernels for what happens to each token alone: norms and feed-forward networks.

Attention stays as it is: its kernels are fused already, and its shapes follow the lengths of the texts.
"""

from typing import Any

import transformers


def compile_token_wise_parts(backbone: "transformers.PreTrainedModel") -> None:
    """Compile norms and feed-forward networks of a decoder with torch's compiler, in place.

    The number of tokens of a row is a variable of the kernels, so that they are built once, in the first
    forward pass, and shared by all layers. Call it when the modules are those that will compute.
    """
    decoder: Any = backbone
    for layer in decoder.layers:
        for part in (layer.input_layernorm, layer.post_attention_layernorm, layer.mlp):
            part.compile(dynamic=True)
    decoder.norm.compile(dynamic=True)
