"""The arithmetic precisions of a model, by name, and which of them a device supports."""

from __future__ import annotations

import torch

from fastrot.errors import UsageError

_AUTOCAST = {"fp64": None, "fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(name: str, device: torch.device, *, training: bool = False) -> str:
    """Return the precision that a name stands for on this device.

    Args:
        name: ``fp32``, ``bf16``, ``fp16``; ``fp64`` in training only; ``auto``: bf16 on a GPU that
            has it, fp16 on an older one, fp32 on a CPU.
        device: device of the model. A CPU has no native kernels for fp16: 1 image/s.
        training: whether the name is that of ``train.precision``.

    Raises:
        UsageError: the device does not support it.
    """
    if name == "auto":
        if device.type == "cpu":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    slow = name == "fp16" and device.type == "cpu"
    if slow and training:
        raise UsageError(
            "train.precision=fp16 is for GPUs; on a CPU set train.precision to fp32 or bf16"
        )
    if slow or name not in _AUTOCAST or (name == "fp64" and not training):
        raise UsageError(f"precision {name!r} is not for a {device.type}; choose fp32 or bf16")
    return name


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return the half-precision type of the forward pass; None for float32 and float64."""
    return _AUTOCAST[precision]
