"""Kinds of kernels and operations, recognised by name."""

from __future__ import annotations

import functools
import re

KINDS = {
    "convolution": "conv",
    "batch norm": "norm",
    "elementwise": "elem",
    "pooling": "pool",
    "matmul": "gemm",
    "copy/cast": "copy",
    "optimizer": "opt",
    "rotate": "rot",
    "other": "else",
}
"""Kinds of work, each with a short name: every column of a table of 14 has four letters."""

# The first pattern that matches decides, so more specific ones come first: a fused kernel of
# torch.compile is named after everything it does, and a convolution's layout change is a copy.
_PATTERNS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("rotate", r"rotate_views|rotate_\w+_kernel"),
        ("copy/cast", r"nchwtonhwc|nhwctonchw|nchw2nhwc|nhwc2nchw|tensorTransform|transpose"),
        ("optimizer", r"multi_tensor|fused_?sgd|sgd_|^Optimizer\.|_amp_|lpnorm|_foreach_"
                      r"|vector_norm"),
        ("batch norm", r"batch_?norm|bn_fw|bn_bw|(?<![a-z])bn_|welford|scale_shift"
                       r"|\b_?(moments|normalise|sums|gradient|merge|finish|coefficients)_kernel"),
        ("pooling", r"max_pool|avg_pool|maxpool|avgpool|pooling|MaxPool|MeanBackward"),
        ("convolution", r"conv|dgrad|wgrad|fprop|implicit_gemm|winograd|xmma"),
        ("matmul", r"gemm|gemv|addmm|aten::mm|cublas|cutlass|nvjet|AddmmBackward"),
        ("copy/cast", r"memcpy|copy_|_to_copy|aten::clone|aten::contiguous|ToCopyBackward|memset"
                      r"|CopyBackward|aten::pad|constant_pad|fill_|zero_"),
        ("elementwise", r"elementwise|relu|threshold|aten::add|aten::mul|clamp|triton_poi"
                        r"|AddBackward|MulBackward|aten::div"),
    )
)  # fmt: skip


@functools.cache  # a profile has tens of thousands of events and few names
def kind_of(name: str) -> str | None:
    """Return one of ``KINDS``; None if the name gives no hint.

    Example:
        >>> kind_of("sm90_xmma_fprop_implicit_gemm_bf16"), kind_of("aten::empty")
        ('convolution', None)
    """
    for kind, pattern in _PATTERNS:
        if pattern.search(name):
            return kind
    return None
