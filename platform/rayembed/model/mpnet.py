"""MPNet on packed texts: its own attention goes round transformers' interface, and adds a bias by position.

The bias of two tokens depends on their distance alone, so texts of equal length share one.
Source: MPNet, arXiv 2004.09297; numbers as in transformers' model of that name.

Shapes: T packed tokens, D hidden width, H heads, L tokens of a text.
"""

from typing import Any

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput

from rayembed.contract.packing import PackedLengths
from rayembed.model.attention import PaddedLengths, PositionBias, packed_attention


class MPNetModel(transformers.MPNetModel):
    """transformers' class, whose forward pass takes packed texts only."""

    supports_gradient_checkpointing = True

    def __init__(self, config: "transformers.MPNetConfig", add_pooling_layer: bool = False):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        self.gradient_checkpointing = False  # transformers sets it, and `_gradient_checkpointing_func`

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        *,
        packed_lengths: PackedLengths,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> BaseModelOutput:
        """States (1, T, D) of a packed row, of all layers on request."""

        def bias(length: int) -> torch.Tensor:
            return self.encoder.compute_position_bias(input_ids.new_empty(1, length))[0]

        known = {length: bias(length) for length in set(packed_lengths.texts)}
        by_length = bias if isinstance(packed_lengths, PaddedLengths) else known.__getitem__
        states = [self.embeddings(input_ids=input_ids, position_ids=position_ids)]
        for layer in self.encoder.layer:
            arguments = (layer, states[-1], packed_lengths, by_length)
            if self.gradient_checkpointing and self.training:
                states.append(self._gradient_checkpointing_func(_layer_states, *arguments))
            else:
                states.append(_layer_states(*arguments))
            if not output_hidden_states:
                del states[:-1]
        return BaseModelOutput(states[-1], tuple(states) if output_hidden_states else None)


def _layer_states(
    layer: Any, states_1TD: torch.Tensor, lengths: PackedLengths, bias: PositionBias
) -> torch.Tensor:
    attention = layer.attention.attn

    def by_head(projection: torch.nn.Module) -> torch.Tensor:
        return projection(states_1TD[0]).unflatten(-1, (attention.num_attention_heads, -1)).transpose(0, 1)

    attended_THW = packed_attention(
        by_head(attention.q),
        by_head(attention.k),
        by_head(attention.v),
        lengths,
        scaling=attention.attention_head_size**-0.5,
        dropout=attention.dropout.p if attention.training else 0.0,
        bias=bias,
    )
    output = layer.attention.dropout(attention.o(attended_THW.flatten(1).unsqueeze(0)))
    states_1TD = layer.attention.LayerNorm(output + states_1TD)
    return layer.output(layer.intermediate(states_1TD), states_1TD)
