"""What would make the host wait for a GPU, found on a CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {
    "aten::_local_scalar_dense",  # item, bool, float of a tensor
    "aten::nonzero",
    "aten::bincount",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::repeat_interleave",  # without the length of its result
}


class RefuseHostWaits(TorchDispatchMode):
    """Inside, an operation whose result's shape or value the host would have to ask the device for fails."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the operation unless it waits."""
        name = function.name().split(".")[0]
        masks = name in (
            "aten::index",
            "aten::index_put",
            "aten::index_put_",
            "aten::_index_put_impl_",
        ) and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if masks or (name in _WAITING and "output_size" not in (kwargs or {})):
            raise AssertionError(f"{function.name()} makes the host wait for the device")
        return function(*args, **(kwargs or {}))
