"""Every implementation of rotate_views equals the reference bit for bit."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torchvision import transforms

from fastrot.kernels import dispatch
from fastrot.kernels.rotate import op, reference
from fastrot.kernels.rotate.op import rotate_views
from fastrot.kernels.rotate.reference import normalisation_table

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def triton_device() -> Iterator[str]:
    """``cuda``, or ``cpu`` with Triton's interpreter switched on while its kernel is imported."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        yield "cuda"
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        module = importlib.import_module("fastrot.kernels.rotate.triton_kernel")
        importlib.reload(module)  # another test may have imported it without the interpreter
        yield "cpu"
    importlib.reload(module)


@pytest.fixture(params=["reference", "cpp", "triton"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one implementation after the other; the device that its inputs must be on."""
    where = request.getfixturevalue("triton_device") if request.param == "triton" else "cpu"
    if problem := dispatch.unavailable("rotate_views", request.param, where):
        pytest.skip(problem)
    monkeypatch.setenv(dispatch.VARIABLE, request.param)
    return where


def inputs(
    n: int, v: int, side: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1000 * n + side)
    images = torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=random)
    turns = torch.randint(0, 4, (n, v), dtype=torch.uint8, generator=random)
    turns[0, : min(v, 4)] = torch.arange(min(v, 4), dtype=torch.uint8)
    flips = torch.arange(n) % 2 == 1
    table = normalisation_table(MEAN, STD, dtype)
    return images.to(device), turns.to(device), flips.to(device), table.to(device)


def one_by_one(
    images: torch.Tensor,
    turns: torch.Tensor,
    flips: torch.Tensor,
    table: torch.Tensor,
    channels: int = 3,
) -> torch.Tensor:
    """The contract spelled out view by view in numpy: an oracle for the reference itself."""
    (n, v), side = turns.shape, images.shape[1]
    views = torch.zeros(n * v, channels, side, side, dtype=table.dtype)
    for row in range(n * v):
        image = images[row // v].numpy()
        if flips[row // v]:
            image = image[:, ::-1]
        image = np.rot90(image, int(turns[row // v, row % v])).astype(np.int64)
        for channel in range(3):
            views[row, channel] = table[torch.from_numpy(image[..., channel].copy()), channel]
    return views


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    bits = torch.int16 if actual.itemsize == 2 else torch.int32
    assert torch.equal(actual.cpu().contiguous().view(bits), expected.contiguous().view(bits))


# 1 and 2: smallest; 7 and 33: odd, one beyond a tile; 32 and 64: whole tiles; 43: a row of words
# that is one beyond Triton's tile of 128.
@pytest.mark.parametrize(
    ("side", "channels"), [*((side, 3) for side in (1, 2, 7, 32, 33, 43, 64)), (7, 4), (33, 4)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_equal_the_contract(
    device: str, side: int, channels: int, dtype: torch.dtype
) -> None:
    images, turns, flips, table = inputs(2, 5, side, dtype, device)
    views = rotate_views(images, turns, flips, table, channels)
    assert views.shape == (10, channels, side, side)
    assert views.is_contiguous(memory_format=torch.channels_last)
    expected = one_by_one(images.cpu(), turns.cpu(), flips.cpu(), table.cpu(), channels)
    assert_same_bits(views, expected)


def test_a_quarter_turn_is_counter_clockwise(device: str) -> None:
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)[None, :, :, None].expand(1, 2, 2, 3)
    table = torch.arange(256.0)[:, None].repeat(1, 3)
    turns = torch.arange(4, dtype=torch.uint8)[None]
    for flip, expected in (
        (False, [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]),
        (True, [[[2, 1], [4, 3]], [[1, 3], [2, 4]], [[3, 4], [1, 2]], [[4, 2], [3, 1]]]),
    ):
        arguments = (image, turns, torch.tensor([flip]), table)
        views = rotate_views(*(tensor.to(device) for tensor in arguments))
        assert views[:, 0].int().tolist() == expected


def test_turns_count_modulo_four(device: str) -> None:
    images, turns, flips, table = inputs(4, 4, 9, device=device)
    assert_same_bits(
        rotate_views(images, turns + 252, flips, table),
        rotate_views(images, turns, flips, table).cpu(),
    )


@pytest.mark.parametrize("channels", [3, 4])
def test_an_empty_batch_gives_no_views(device: str, channels: int) -> None:
    images, turns, flips, table = inputs(2, 4, 8, device=device)
    views = rotate_views(images[:0], turns[:0], flips[:0], table, channels)
    assert views.shape == (0, channels, 8, 8)


def test_strided_inputs_are_taken(device: str) -> None:
    images, turns, flips, table = inputs(8, 4, 16, device=device)
    views = rotate_views(images[::2, 1:12, 3:14], turns[::2, 1:], flips[::2], table.flip(0))
    expected = one_by_one(
        images[::2, 1:12, 3:14].cpu(), turns[::2, 1:].cpu(), flips[::2].cpu(), table.flip(0).cpu()
    )
    assert_same_bits(views, expected)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_threads_do_not_change_the_views(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    if problem := dispatch.unavailable("rotate_views", "cpp", "cpu"):
        pytest.skip(problem)
    monkeypatch.setenv(dispatch.VARIABLE, "cpp")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    images, turns, flips, table = inputs(17, 4, 96)
    assert_same_bits(
        rotate_views(images, turns, flips, table), one_by_one(images, turns, flips, table)
    )


def test_table_is_torchvisions_normalisation() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(16, 16, 3)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = transform(images.numpy())
    turns, flips = torch.zeros(1, 1, dtype=torch.uint8), torch.tensor([False])
    for dtype in DTYPES:
        table = normalisation_table(MEAN, STD, dtype)
        assert_same_bits(rotate_views(images[None], turns, flips, table)[0], expected.to(dtype))


IMAGES, TURNS, FLIPS, TABLE = inputs(2, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((IMAGES[:, :6], TURNS, FLIPS, TABLE), ValueError, "6 x 8 pixels must be square.*crop"),
        ((IMAGES.float(), TURNS, FLIPS, TABLE), TypeError, r"images is torch.float32 but must be"),
        ((IMAGES, TURNS.long(), FLIPS, TABLE), TypeError, r"use turns.to\(torch.uint8\)"),
        ((IMAGES, TURNS, FLIPS.byte(), TABLE), TypeError, r"use flips.to\(torch.bool\)"),
        ((IMAGES, TURNS, FLIPS, TABLE.double()), TypeError, "table is torch.float64"),
        ((IMAGES.permute(0, 3, 1, 2), TURNS, FLIPS, TABLE), ValueError, r"permute\(0, 2, 3, 1\)"),
        ((IMAGES[0], TURNS, FLIPS, TABLE), ValueError, r"\(8, 8, 3\) must be \(N, S, S, 3\)"),
        ((IMAGES[:, :0, :0], TURNS, FLIPS, TABLE), ValueError, "at least one pixel"),
        ((IMAGES, TURNS[:1], FLIPS, TABLE), ValueError, "turns of shape.*N = 2"),
        ((IMAGES, TURNS[:, :0], FLIPS, TABLE), ValueError, "V >= 1"),
        ((IMAGES, TURNS, FLIPS[:1], TABLE), ValueError, "flips of shape.*N = 2"),
        ((IMAGES, TURNS, FLIPS, TABLE[:255]), ValueError, r"\(255, 3\) must be \(256, 3\)"),
        ((IMAGES, TURNS, FLIPS, TABLE, 5), ValueError, "channels=5 must be 3, or 4"),
        ((IMAGES, TURNS, FLIPS, TABLE.to("meta")), ValueError, "table is on meta"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        rotate_views(*arguments)
    with pytest.raises(error, match=message):  # the registered operation is as strict
        torch.ops.fastrot.rotate_views(*arguments[:4], *(arguments[4:] or (3,)))


def test_the_extension_refuses_what_would_overrun() -> None:
    if problem := dispatch.unavailable("rotate_views", "cpp", "cpu"):
        pytest.skip(problem)
    from fastrot.kernels import _native

    flips, table = FLIPS.byte(), TABLE.view(torch.int32)
    views = torch.empty(8, 8, 8, 3).view(torch.int32)
    _native.rotate_views(IMAGES, TURNS, flips, table, views, 1)
    for images, turns, out in (
        (IMAGES[:1], TURNS, views),
        (IMAGES[:, :, :7].contiguous(), TURNS, views),
        (IMAGES, TURNS[:, :3].contiguous(), views),
        (IMAGES, TURNS, views[:7]),
        (IMAGES, TURNS, views[..., :2].contiguous()),
    ):
        with pytest.raises(ValueError, match="do not fit together"):
            _native.rotate_views(images, turns, flips, table, out, 1)
    with pytest.raises(TypeError):  # another dtype is not converted
        _native.rotate_views(IMAGES, TURNS, flips, table.short(), views, 1)
    with pytest.raises(TypeError):  # strides are not copied away
        _native.rotate_views(IMAGES.transpose(1, 2), TURNS, flips, table, views, 1)


def test_registration_passes_torchs_own_checks() -> None:
    torch.library.opcheck(op._operation, (IMAGES, TURNS, FLIPS, TABLE, 4))


def test_a_compiled_graph_holds_the_operation() -> None:
    compiled = torch.compile(rotate_views, backend="aot_eager", fullgraph=True)
    assert_same_bits(
        compiled(IMAGES, TURNS, FLIPS, TABLE), rotate_views(IMAGES, TURNS, FLIPS, TABLE)
    )


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(op).attempted > 0
    assert doctest.testmod(op).failed == 0


def test_reference_fills_every_word() -> None:
    views = torch.full((8, 8, 8, 4), torch.nan)
    reference.rotate_views(IMAGES, TURNS, FLIPS, TABLE, views)
    assert not views.isnan().any()
