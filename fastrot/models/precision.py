"""The arithmetic precision that a configuration and a device allow."""

from __future__ import annotations

import torch

from fastrot.errors import UsageError


def feature_precision(name: str, device: torch.device) -> str:
    """``auto`` as what it is on this device: fp32 on a CPU, else half precision.

    Raises:
        UsageError: the device cannot run it.
    """
    if name == "auto":
        if device.type == "cpu":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name not in ("fp32", "bf16", "fp16") or (name == "fp16" and device.type == "cpu"):
        raise UsageError(f"precision {name!r} is not for a {device.type}; choose fp32 or bf16")
    return name


def _precision(name: str, device: torch.device) -> str:
    if name == "auto":
        if device.type == "cpu":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device.type == "cpu":  # no kernels of their own: 1 image/s
        raise UsageError(
            "train.precision=fp16 is for GPUs; on a CPU set train.precision to fp32 or bf16"
        )
    return name


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Half-precision type of the forward pass, or None for float32 and float64."""
    return {"fp64": None, "fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
