"""Lets torch 2.11's variable-length attention be called as that of 2.13.

In the archive this is `sitecustomize.py` too, so that it holds in every process of Ray.
"""

import inspect
from typing import Any

import wrapt


@wrapt.when_imported("torch.nn.attention.varlen")
def fit_varlen(varlen: Any) -> str:
    """Change the module; returns what was done.

    Its kernel takes fewer key heads than query heads by itself and has no argument to allow it.
    """
    attend = varlen.varlen_attn
    if "enable_gqa" in inspect.signature(attend).parameters:
        return "as it is"

    def without_argument(*tensors: Any, enable_gqa: bool, **settings: Any) -> Any:
        return attend(*tensors, **settings)

    varlen.varlen_attn = without_argument
    return "without enable_gqa"
