"""Backbone plus pooling head: packed tokens -> unit vectors.

Shapes: T packed tokens, P pooled tokens, N texts, D hidden width.
"""

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

from rayembed.contract.packing import PackedBatch
from rayembed.model.configuration import ModelConfig


class EmbeddingModel(nn.Module):
    """A decoder whose token states are pooled into one unit vector a text.

    Attributes:
        checkpoints_pooling: keep only the head's input for the backward pass; recompute the rest.
    """

    checkpoints_pooling = False

    def __init__(self, backbone: "transformers.PreTrainedModel", config: ModelConfig):
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.pooling = config.pooling.build(backbone.config.hidden_size, backbone.config.num_hidden_layers)

    @property
    def dimensions(self) -> int:
        """Width of the vectors."""
        return self.backbone.config.hidden_size

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Embed a packed batch; returns fp32 unit vectors (N, D) in the order the texts were given."""
        states = self.pooled_states(batch, all_layers=self.pooling.all_layers)
        return self.pool(states if self.pooling.all_layers else states[-1], batch)

    def pooled_states(self, batch: PackedBatch, *, all_layers: bool) -> list[torch.Tensor]:
        """States of the pooled tokens (P, D): of every layer, or of the last one, behind the final norm."""
        output = self.backbone(
            input_ids=batch.input_ids_T.unsqueeze(0),
            position_ids=batch.position_ids_T.unsqueeze(0),
            use_cache=False,
            packed_lengths=batch.lengths,
            output_hidden_states=all_layers,
        )
        # The first entry is the token embeddings; the last is the output of the final norm.
        layers = output.hidden_states[1:] if all_layers else [output.last_hidden_state]
        return [states_1TD[0].index_select(0, batch.pooled_P) for states_1TD in layers]

    def pool(self, states_PD: torch.Tensor | list[torch.Tensor], batch: PackedBatch) -> torch.Tensor:
        """fp32 unit vectors (N, D) from the states of pooled tokens, of each layer where the head asks."""
        pooled = (states_PD, batch.text_index_P, batch.pooled_lengths)
        if self.checkpoints_pooling:
            # No head draws random numbers, and reading the generator's state would wait for the device.
            vectors_ND = checkpoint(self.pooling, *pooled, use_reentrant=False, preserve_rng_state=False)
        else:
            vectors_ND = self.pooling(*pooled)
        return F.normalize(vectors_ND, dim=-1)[batch.order_N]
