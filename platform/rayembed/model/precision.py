"""Choice of number format for a device."""

import platform

import torch

from rayembed.common.settings import Precision


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Number format of the weights: bf16 where the processor multiplies it natively, else fp32."""
    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if precision in named:
        return named[precision]
    return torch.bfloat16 if _has_native_bf16(device) else torch.float32


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
