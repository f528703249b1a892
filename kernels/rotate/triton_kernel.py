"""``rotate_views`` in Triton: in one pass, every output word is one byte looked up in the table.

Words are moved as bits, four words of 16 bits at a time where these are a pixel, without
arithmetic. So the result equals the reference's bit for bit, even under TRITON_INTERPRET=1, whose
float conversions round differently from a GPU's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# A tile of output rows x words: stores are 256 bytes at 16 bits per word, and where a turn reads
# down the source's columns, the 32 source rows of about 43 pixels stay in the L1 cache.
_ROWS, _WORDS = 32, 128

# The same for whole pixels of four 16-bit words: one store each, and a quarter of the arithmetic.
_PIXEL_ROWS, _PIXELS = 32, 32


@triton.jit
def _source(i, j, turn, flip, S):
    """Return the index of the pixel that a counter-clockwise turn moves to row i and column j."""
    # (i, j), (j, S-1-i), (S-1-i, S-1-j), (S-1-j, i)
    last = S - 1
    row = tl.where(turn == 0, i, tl.where(turn == 1, j, tl.where(turn == 2, last - i, last - j)))
    column = tl.where(turn == 0, j, tl.where(turn == 1, last - i, tl.where(turn == 2, last - j, i)))
    column = tl.where(flip != 0, last - column, column)  # the flip came before the turn
    return row * S + column


@triton.jit
def _rotate_views_kernel(
    images_ptr,  # pointer to uint8, shape (N, S, S, 3)
    turns_ptr,  # pointer to uint8, shape (N, V)
    flips_ptr,  # pointer to uint8, shape (N,), 0 or 1
    table_ptr,  # pointer to int16 or int32, shape (256, 3)
    views_ptr,  # pointer to int16 or int32, shape (N*V, S, S, C)
    V,
    S,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    view = tl.program_id(0).to(tl.int64)
    image = view // V
    turn = tl.load(turns_ptr + view).to(tl.int32) & 3
    flip = tl.load(flips_ptr + image).to(tl.int32)

    i = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]  # output row
    word = (tl.program_id(2) * WORDS + tl.arange(0, WORDS))[None, :]  # within that row
    j = word // C
    channel = word % C
    inside = (i < S) & (word < S * C)

    coloured = inside & (channel < 3)
    source = images_ptr + image * S * S * 3 + _source(i, j, turn, flip, S) * 3 + channel
    value = tl.load(source, mask=coloured, other=0).to(tl.int32)
    bits = tl.load(table_ptr + value * 3 + channel, mask=coloured, other=0)
    tl.store(views_ptr + view * S * S * C + i * (S * C) + word, bits, mask=inside)


@triton.jit
def _rotate_pixels_kernel(
    images_ptr,  # pointer to uint8, shape (N, S, S, 3)
    turns_ptr,  # pointer to uint8, shape (N, V)
    flips_ptr,  # pointer to uint8, shape (N,), 0 or 1
    table_ptr,  # pointer to int16, shape (256, 3)
    views_ptr,  # pointer to int64, shape (N*V, S, S): four words of 16 bits, the last one 0
    V,
    S,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    view = tl.program_id(0).to(tl.int64)
    image = view // V
    turn = tl.load(turns_ptr + view).to(tl.int32) & 3
    flip = tl.load(flips_ptr + image).to(tl.int32)

    i = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    j = (tl.program_id(2) * PIXELS + tl.arange(0, PIXELS))[None, :]
    inside = (i < S) & (j < S)
    source = images_ptr + image * S * S * 3 + _source(i, j, turn, flip, S) * 3
    pixel = tl.full((ROWS, PIXELS), 0, tl.int64)
    for channel in tl.static_range(3):
        value = tl.load(source + channel, mask=inside, other=0).to(tl.int32)
        word = tl.load(table_ptr + value * 3 + channel, mask=inside, other=0)
        pixel |= (word.to(tl.int64) & 0xFFFF) << (16 * channel)
    tl.store(views_ptr + view * S * S + i * S + j, pixel, mask=inside)


def rotate_views(
    images: torch.Tensor,
    turns: torch.Tensor,
    flips: torch.Tensor,
    table: torch.Tensor,
    views: torch.Tensor,
) -> None:
    """Fill ``views`` as ``reference.rotate_views`` does; tensors are contiguous, on one GPU."""
    side, channels = views.shape[1], views.shape[3]
    if table.itemsize == 2 and channels == 4:
        grid = (len(views), -(-side // _PIXEL_ROWS), -(-side // _PIXELS))
        _rotate_pixels_kernel[grid](
            images,
            turns,
            flips.view(torch.uint8),
            table.view(torch.int16),
            views.view(torch.int64),
            turns.shape[1],
            side,
            ROWS=_PIXEL_ROWS,
            PIXELS=_PIXELS,
        )
        return
    bits = torch.int16 if table.itemsize == 2 else torch.int32
    grid = (len(views), -(-side // _ROWS), -(-side * channels // _WORDS))
    _rotate_views_kernel[grid](
        images,
        turns,
        flips.view(torch.uint8),
        table.view(bits),
        views.view(bits),
        turns.shape[1],
        side,
        C=channels,
        ROWS=_ROWS,
        WORDS=_WORDS,
    )
