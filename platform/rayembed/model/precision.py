"""Choice of number format for a device."""

import platform

import torch

from rayembed.common.settings import Precision


def chosen_precision(precision: Precision, device: torch.device) -> Precision:
    """Number format of the weights; in place of auto bf16 where the processor multiplies it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if _has_native_bf16(device) else "fp32"


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The same as torch has it."""
    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return named[chosen_precision(precision, device)]


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
