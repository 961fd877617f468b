"""What every pooling head has in common: its settings, which build it, and the head."""

from abc import abstractmethod

from torch import nn

from rayembed.common.settings import Frozen


class PoolingHead(nn.Module):
    """Turns token states into one vector a text.

    `forward` takes the states of P pooled tokens (P, D), the text that each token belongs to (P), ascending
    from 0, and the number of pooled tokens of each of the N texts. It returns fp32 vectors (N, D) that are
    not normalised. It must not make the host wait for the device: no masks as indices, no `bincount`, no
    `item`.

    Attributes:
        all_layers: `forward` takes a (P, D) tensor of each backbone layer instead of the last layer's alone.
    """

    all_layers = False


class PoolingSettings(Frozen):
    """Base of a head's settings. Subclasses state their `type`, by which recipes choose them."""

    @abstractmethod
    def build(self, hidden_size: int, num_layers: int) -> PoolingHead:
        """Head over a backbone of `num_layers` layers of width `hidden_size`."""
