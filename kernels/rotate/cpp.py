"""``rotate_views`` in the compiled extension: threads on the host move words as bits."""

from __future__ import annotations

import torch

from fastrot.kernels import _native


def rotate_views(
    images: torch.Tensor,
    turns: torch.Tensor,
    flips: torch.Tensor,
    table: torch.Tensor,
    views: torch.Tensor,
) -> None:
    """Fill ``views`` as ``reference.rotate_views`` does; tensors are contiguous, in host memory."""
    bits = torch.int16 if table.itemsize == 2 else torch.int32
    _native.rotate_views(
        images,
        turns,
        flips.view(torch.uint8),
        table.view(bits),
        views.view(bits),
        torch.get_num_threads(),
    )
