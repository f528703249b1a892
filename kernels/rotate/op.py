"""``rotate_views``: makes normalised, turned views of a batch of images in one pass.

Shapes: N images, V views of each, S side, C = 3 or 4 channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastrot.kernels.dispatch import choose
from fastrot.kernels.rotate import reference

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def rotate_views(
    images: torch.Tensor,
    turns: torch.Tensor,
    flips: torch.Tensor,
    table: torch.Tensor,
    channels: int = 3,
) -> torch.Tensor:
    """Flip, turn and normalise images: row n*V + v is image n after turns[n, v] quarter turns.

    An image is first mirrored left to right if its flag in ``flips`` is set, then turned
    COUNTER-clockwise (``torch.rot90`` over height and width), then each byte is looked up in
    ``table[byte, channel]``. No implementation does arithmetic, so all give the same bits.

    Args:
        images: of shape (N, S, S, 3), uint8, RGB; N may be 0.
        turns: of shape (N, V), uint8, taken modulo 4.
        flips: of shape (N,), bool.
        table: of shape (256, 3), float32, float16 or bfloat16 (``normalisation_table``).
        channels: 3, or 4 for a fourth channel of zeros (tensor cores like even counts).

    Returns:
        Views of shape (N*V, channels, S, S), channels-last in memory, dtype of ``table``.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: shapes or devices do not fit.
        KernelUnavailableError: FASTROT_KERNELS forces an implementation that cannot run.

    Example:
        >>> table = reference.normalisation_table((0, 0, 0), (1, 1, 1), torch.float32)
        >>> image = torch.tensor([[[0], [51]], [[102], [153]]], dtype=torch.uint8).expand(2, 2, 3)
        >>> turns = torch.tensor([[1]], dtype=torch.uint8)
        >>> rotate_views(image[None], turns, torch.tensor([False]), table)[0, 0].mul(255).int()
        tensor([[ 51, 153],
                [  0, 102]], dtype=torch.int32)
    """
    # The registered operation is for graphs; calling it loads torch's compiler, for seconds.
    run = _operation if torch.compiler.is_compiling() else _views
    views: torch.Tensor = run(images, turns, flips, table, channels)
    return views


def _views(
    images: torch.Tensor,
    turns: torch.Tensor,
    flips: torch.Tensor,
    table: torch.Tensor,
    channels: int,
) -> torch.Tensor:
    _check(images, turns, flips, table, channels)
    fill = _implementation(choose("rotate_views", images.device.type).implementation)
    views = _empty(images, turns, table, channels)
    if views.numel():
        fill(images.contiguous(), turns.contiguous(), flips.contiguous(), table.contiguous(), views)
    return views.permute(0, 3, 1, 2)


_operation = torch.library.custom_op("fastrot::rotate_views", _views, mutates_args=())


@_operation.register_fake
def _(
    images: torch.Tensor,
    turns: torch.Tensor,
    flips: torch.Tensor,
    table: torch.Tensor,
    channels: int,
) -> torch.Tensor:
    _check(images, turns, flips, table, channels)
    return _empty(images, turns, table, channels).permute(0, 3, 1, 2)


def _implementation(name: str) -> Callable[..., None]:
    """Import and return the implementation; the extension and Triton may be missing."""
    if name == "cpp":
        from fastrot.kernels.rotate import cpp

        return cpp.rotate_views
    if name == "triton":
        from fastrot.kernels.rotate import triton_kernel

        return triton_kernel.rotate_views
    return reference.rotate_views


def _empty(
    images: torch.Tensor, turns: torch.Tensor, table: torch.Tensor, channels: int
) -> torch.Tensor:
    n, v = turns.shape
    side = images.shape[1]
    return images.new_empty((n * v, side, side, channels), dtype=table.dtype)


def _check(
    images: torch.Tensor,
    turns: torch.Tensor,
    flips: torch.Tensor,
    table: torch.Tensor,
    channels: int,
) -> None:
    """Check everything that a kernel relies on, before anything is allocated."""
    for name, tensor, dtype in (
        ("images", images, torch.uint8),
        ("turns", turns, torch.uint8),
        ("flips", flips, torch.bool),
    ):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} is {tensor.dtype} but must be {dtype}; use {name}.to({dtype})")
    if table.dtype not in _DTYPES:
        raise TypeError(
            f"table is {table.dtype} but must be float32, float16 or bfloat16; "
            "make it with normalisation_table"
        )
    if images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images of shape {tuple(images.shape)} must be (N, S, S, 3); "
            "permute channels-first images with images.permute(0, 2, 3, 1)"
        )
    n, height, width, _ = images.shape
    if height != width:
        raise ValueError(
            f"images of {height} x {width} pixels must be square, or a quarter turn would change "
            "their shape; crop them first"
        )
    if height == 0:
        raise ValueError("images of 0 x 0 pixels must have at least one pixel; crop them larger")
    if turns.ndim != 2 or turns.shape[0] != n or turns.shape[1] == 0:
        raise ValueError(
            f"turns of shape {tuple(turns.shape)} must be (N, V) with N = {n} and V >= 1; "
            "give one row of turns for each image"
        )
    if flips.shape != (n,):
        raise ValueError(
            f"flips of shape {tuple(flips.shape)} must be (N,) with N = {n}; "
            "give one flag for each image"
        )
    if table.shape != (256, 3):
        raise ValueError(
            f"table of shape {tuple(table.shape)} must be (256, 3); "
            "make it with normalisation_table"
        )
    if channels not in (3, 4):
        raise ValueError(f"channels={channels} must be 3, or 4 for a fourth channel of zeros")
    for name, tensor in (("turns", turns), ("flips", flips), ("table", table)):
        if tensor.device != images.device:
            raise ValueError(
                f"{name} is on {tensor.device} but must be where images are, {images.device}; "
                f"use {name}.to(images.device)"
            )
