"""Which weights of one linear layer become zero, by three methods.

Magnitude takes the smallest weights. Wanda (arXiv 2306.11695) takes those whose weight times the norm of its
input is smallest. SparseGPT (arXiv 2301.00774, algorithm 1) goes through the columns from left to right and
lets the columns to the right make up for what is lost.

Shapes: O outputs, I inputs, T tokens.
"""

from typing import Literal, get_args

import torch

from rayembed.common.errors import ConfigError

Method = Literal["magnitude", "wanda", "sparsegpt"]
Pattern = Literal["unstructured", "2:4", "4:8"]
"""2:4 keeps two of any four neighbours in a row. GPUs multiply by such weights faster, by 4:8 they do not."""

METHODS: tuple[Method, ...] = get_args(Method)
_BLOCK = 128  # columns that SparseGPT goes through before those to the right are changed
_DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to it


class Hessian:
    """Sum of x xᵀ over a layer's input tokens x, (I, I) in fp32: half the Hessian of its squared error."""

    def __init__(self, width: int, device: torch.device):
        self.sum_II = torch.zeros(width, width, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Take in more tokens, (..., I)."""
        inputs_TI = inputs.flatten(0, -2).float()
        self.sum_II.addmm_(inputs_TI.T, inputs_TI)


class SquareSums:
    """Sum of squares of each input over tokens, (I): the diagonal of `Hessian`, in the memory of one row."""

    def __init__(self, width: int, device: torch.device):
        self.sum_I = torch.zeros(width, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Take in more tokens, (..., I)."""
        self.sum_I += inputs.flatten(0, -2).float().square().sum(dim=0)


Statistics = Hessian | SquareSums
STATISTICS: dict[Method, type[Hessian] | type[SquareSums] | None] = {
    "magnitude": None, "wanda": SquareSums, "sparsegpt": Hessian,
}  # fmt: skip


def pruned(
    weight_OI: torch.Tensor, pattern: Pattern, statistics: Statistics | None = None, share: float = 0.5
) -> torch.Tensor:
    """The weights with zeros; the statistics decide the method.

    Args:
        weight_OI: of a linear layer.
        pattern: where the zeros may be.
        statistics: None: magnitude; SquareSums: Wanda; Hessian: SparseGPT, which uses it up.
        share: of zeros without a pattern.

    Raises:
        ConfigError: the layer's inputs cannot be cut into the pattern's groups.
    """
    if pattern != "unstructured" and weight_OI.shape[1] % int(pattern[2:]):
        raise ConfigError(
            f"pattern {pattern} needs a multiple of {pattern[2:]} inputs and a layer has "
            f"{weight_OI.shape[1]}; choose unstructured"
        )
    fp32_OI = weight_OI.float()
    if isinstance(statistics, Hessian):
        return _sparsegpt(fp32_OI.clone(), statistics, pattern, share).to(weight_OI.dtype)
    if isinstance(statistics, SquareSums):
        scores_OI, rows = fp32_OI.abs() * statistics.sum_I.sqrt(), len(fp32_OI)
    else:
        scores_OI, rows = fp32_OI.abs(), 1
    return weight_OI.masked_fill(_lowest(scores_OI, pattern, share, rows), 0)


def _lowest(scores_OI: torch.Tensor, pattern: Pattern, share: float, rows: int) -> torch.Tensor:
    """True where a weight becomes zero.

    Without a pattern the scores compete in `rows` groups: 1 for the whole layer, O for each row alone.
    """
    if pattern == "unstructured":
        groups = scores_OI.reshape(rows, -1)
        count = round(share * groups.shape[1])
    else:
        kept, of = (int(number) for number in pattern.split(":"))
        groups, count = scores_OI.reshape(-1, of), of - kept
    lowest = torch.zeros_like(groups, dtype=torch.bool)
    lowest.scatter_(1, groups.topk(count, dim=1, largest=False).indices, True)
    return lowest.reshape(scores_OI.shape)


def _sparsegpt(weight_OI: torch.Tensor, hessian: Hessian, pattern: Pattern, share: float) -> torch.Tensor:
    """Prune and make up for it, in place.

    Removing weight w of column j costs w² / d² where d² is the first diagonal entry of the inverse of the
    Hessian of columns j and up. The best change of these columns is then -w / d² times that inverse's first
    row. One upper Cholesky factor U of the whole inverse holds all of them: its row j, from the diagonal on,
    is d times the row of column j. With three columns:

        U = u00 u01 u02      column 0: d = u00, error e = w0 / u00, columns 0 to 2 change by -e (u00 u01 u02)
                u11 u12      column 1: d = u11, error e = w1 / u11, columns 1 and 2 change by -e (u11 u12)
                    u22
    """
    upper_II = _inverse_factor(weight_OI, hessian)
    group = _BLOCK if pattern == "unstructured" else int(pattern[2:])
    width = weight_OI.shape[1]
    for start in range(0, width, _BLOCK):
        block_OJ = weight_OI[:, start : start + _BLOCK]
        upper_JJ = upper_II[start : start + _BLOCK, start : start + _BLOCK]
        errors_OJ = torch.zeros_like(block_OJ)
        removed_OG = torch.empty(0)
        for column in range(block_OJ.shape[1]):
            if column % group == 0:  # the weights of a group are chosen as they are when it begins
                after = slice(column, column + group)
                removed_OG = _lowest(
                    (block_OJ[:, after] / upper_JJ.diagonal()[after]).square(), pattern, share, 1
                )
            removed_O = removed_OG[:, column % group]
            errors_O = block_OJ[:, column] / upper_JJ[column, column] * removed_O
            block_OJ[:, column:] -= torch.outer(errors_O, upper_JJ[column, column:])
            block_OJ[:, column].masked_fill_(removed_O, 0)
            errors_OJ[:, column] = errors_O
        after_block = slice(start + _BLOCK, width)
        weight_OI[:, after_block] -= errors_OJ @ upper_II[start : start + _BLOCK, after_block]
    return weight_OI


def _inverse_factor(weight_OI: torch.Tensor, hessian: Hessian) -> torch.Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse; an input that is always 0 needs no weight."""
    sum_II = hessian.sum_II
    diagonal_I = sum_II.diagonal()
    unused_I = diagonal_I == 0
    weight_OI.masked_fill_(unused_I, 0)
    diagonal_I.masked_fill_(unused_I, 1)
    diagonal_I += _DAMPING * diagonal_I.mean()
    torch.linalg.cholesky(sum_II, out=sum_II)
    inverse_II = torch.cholesky_inverse(sum_II)
    del hessian.sum_II, sum_II, diagonal_I
    return torch.linalg.cholesky(inverse_II, upper=True)
