"""Neighbours over arrays and files: equal to scikit-learn's, whatever the blocks are."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from fastrot.data.images.decode import decode_image
from fastrot.solvers import topk
from fastrot.solvers.topk import nearest_rows


@pytest.fixture(scope="module")
def photos(test_data: Callable[[str], Path]) -> NDArray[np.float16]:
    """32 x 32 grey thumbnails of 400 photos, of shape (400, 1024)."""
    folders = sorted((test_data("imagenette-128") / "train").iterdir())
    paths = [path for folder in folders for path in sorted(folder.iterdir())[:40]]
    rows = [decode_image(path.read_bytes(), apply_exif=True)[:64:2, :64:2, 1] for path in paths]
    return np.stack(rows).reshape(len(rows), -1).astype(np.float16)


def test_neighbours_are_scikit_learns(photos: NDArray[np.float16]) -> None:
    similarities, rows = nearest_rows(photos[300:], photos[:300], 20)
    exact = photos.astype(np.float64)
    peer = NearestNeighbors(n_neighbors=20, algorithm="brute", metric="cosine").fit(exact[:300])
    distances, expected = peer.kneighbors(exact[300:])
    np.testing.assert_allclose(similarities, 1 - distances, atol=3e-7)
    # float64 tells rows apart that float32 does not.
    apart = rows != expected
    assert apart.mean() < 0.001
    np.testing.assert_allclose(similarities[apart], (1 - distances)[apart], atol=1e-6)


@pytest.mark.parametrize("block_rows", [1, 7, 64, 299, 300])
def test_blocks_do_not_change_a_bit(photos: NDArray[np.float16], block_rows: int) -> None:
    bank = np.concatenate([photos[:150], photos[:150]])  # each row twice: ties everywhere
    whole = nearest_rows(photos[300:], bank, 31)
    seen: list[tuple[int, int]] = []
    parts = nearest_rows(
        photos[300:],
        bank,
        31,
        block_bytes=4 * block_rows * bank.shape[1],
        progress=lambda done, of: seen.append((done, of)),
    )
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert seen[-1] == (300, 300) and len(seen) == -(-300 // block_rows)


def test_of_copies_the_lower_row_comes_first(photos: NDArray[np.float16]) -> None:
    bank = np.concatenate([photos[:3]] * 4)
    similarities, rows = nearest_rows(photos[1:2], bank, 4)
    assert rows.tolist() == [[1, 4, 7, 10]]
    np.testing.assert_allclose(similarities, 1, atol=1e-7)


def test_scale_does_not_count(photos: NDArray[np.float16]) -> None:
    plain = nearest_rows(photos[300:], photos[:300], 5)
    scaled = nearest_rows(photos[300:] * np.float16(0.25), photos[:300] * np.float16(0.5), 5)
    for one, other in zip(plain, scaled, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_row_of_zeros_has_similarity_zero(photos: NDArray[np.float16]) -> None:
    bank = photos[:10].copy()
    bank[4] = 0
    similarities, rows = nearest_rows(np.zeros((1, 1024), np.float16), bank, 3)
    assert rows.tolist() == [[0, 1, 2]] and similarities.tolist() == [[0, 0, 0]]
    similarities, rows = nearest_rows(photos[:1], bank, 10)
    assert rows[0, -1] == 4 and similarities[0, -1] == 0


def test_a_memory_map_larger_than_a_block(photos: NDArray[np.float16], tmp_path: Path) -> None:
    np.save(tmp_path / "bank.npy", photos[:300])
    bank = np.load(tmp_path / "bank.npy", mmap_mode="r")
    mapped = nearest_rows(photos[300:], bank, 9, block_bytes=100_000)
    for one, other in zip(mapped, nearest_rows(photos[300:], photos[:300], 9), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("queries", "bank", "k", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 2)), 1, r"bank of shape \(4, 2\) must be"),
        (np.ones(3), np.ones((4, 3)), 1, r"queries of shape \(3,\)"),
        (np.ones((2, 3)), np.ones((4, 3)), 5, "k=5 must be from 1 to 4, the number of rows"),
        (np.ones((2, 3)), np.ones((4, 3)), 0, "k=0 must be from 1"),
        (np.ones((2, 3)), np.array([[1, 1, 1], [1, np.nan, 1]]), 1, "row 1 of 2 .* not finite"),
        (np.array([[np.inf, 1.0]]), np.ones((1, 2)), 1, "row 0 of 1 .* not finite"),
    ],
)
def test_a_wrong_argument_is_named(queries, bank, k, message) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_rows(queries, bank, k)


def test_examples_in_docstrings_hold() -> None:
    results = doctest.testmod(topk)
    assert results.attempted > 0 and results.failed == 0
