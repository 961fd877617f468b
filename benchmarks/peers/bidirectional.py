"""Makes Mistral attend in both directions, in the transformers releases of both peers."""

from transformers.models.mistral import modeling_mistral


def attend_in_both_directions() -> None:
    """Replace the causal mask by one that hides padding alone."""

    def mask(**arguments):
        visible_BS = arguments["attention_mask"]
        return visible_BS[:, None, None, :].bool().expand(-1, 1, visible_BS.shape[1], -1)

    modeling_mistral.create_causal_mask = mask
    modeling_mistral.create_sliding_window_causal_mask = mask
