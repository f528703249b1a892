"""Crop boxes: torchvision's distribution, inside the image, a function of the sample alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import v2

from fastrot.data.sampling.crops import Crop, replacement

sides = st.integers(1, 700)
sizes = st.lists(st.tuples(sides, sides), min_size=1, max_size=20)


def crops():
    kinds = st.sampled_from(["random_resized", "center", "center_random", "whole"])
    return st.builds(Crop, kind=kinds, size=st.integers(8, 256), resize=st.integers(8, 300))


@given(crop=crops(), sizes=sizes, seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**31))
def test_boxes_lie_inside_the_image(crop, sizes, seed, epoch):
    w, h = np.array(sizes).T
    left, top, width, height = crop.boxes(seed, epoch, np.arange(len(w)), w, h).T
    assert (left >= 0).all() and (top >= 0).all() and (width > 0).all() and (height > 0).all()
    assert (left + width <= w).all() and (top + height <= h).all()
    assert not crop.leaves_image


@given(sizes=sizes, padding=st.integers(0, 20), seed=st.integers(0, 2**64 - 1))
def test_padded_boxes_leave_the_image_by_the_padding_at_most(sizes, padding, seed):
    crop = Crop("padded", 32, padding=padding)
    w, h = np.array(sizes).T
    left, top, width, height = crop.boxes(seed, 0, np.arange(len(w)), w, h).T
    margin = np.rint(padding * np.minimum(w, h) / 32)
    assert (width == np.minimum(w, h)).all() and (height == width).all()
    assert (left >= -margin).all() and (left + width <= w + margin).all()
    assert (top >= -margin).all() and (top + height <= h + margin).all()
    assert crop.leaves_image == (padding > 0)


@pytest.mark.parametrize("kind", ["random_resized", "padded", "center", "center_random", "whole"])
def test_a_box_does_not_depend_on_the_batch_it_is_in(kind):
    crop = Crop(kind, 32, flip=0.5)
    ids = np.random.default_rng(0).permutation(1000)
    w, h = 20 + ids % 77, 20 + ids % 91
    together, flips = crop.boxes(1, 2, ids, w, h), crop.flips(1, 2, ids)
    for rows in np.array_split(np.random.default_rng(1).permutation(1000), 60):
        assert np.array_equal(crop.boxes(1, 2, ids[rows], w[rows], h[rows]), together[rows])
        assert np.array_equal(crop.flips(1, 2, ids[rows]), flips[rows])


def test_epochs_and_seeds_draw_anew():
    crop = Crop("random_resized", 32)
    ids = np.arange(100)

    def boxes(seed, epoch):
        return crop.boxes(seed, epoch, ids, np.full(100, 300), np.full(100, 200))

    assert (boxes(0, 0) == boxes(0, 1)).all(axis=1).sum() <= 2
    assert (boxes(0, 0) == boxes(1, 0)).all(axis=1).sum() <= 2
    assert (boxes(1, 0) == boxes(0, 1)).all(axis=1).sum() <= 2


@pytest.mark.parametrize("size", [(500, 375), (128, 128), (1000, 100)])
def test_random_resized_has_torchvisions_distribution(size):
    """Two-sample Kolmogorov-Smirnov test of each coordinate; (1000, 100) needs the fallback."""
    n = 4000
    w, h = size
    ours = Crop("random_resized", 224).boxes(0, 0, np.arange(n), np.full(n, w), np.full(n, h))
    transform = v2.RandomResizedCrop(224)
    image = torch.empty((3, h, w), dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(n)]
    theirs = np.array([[p["left"], p["top"], p["width"], p["height"]] for p in drawn])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    areas = [boxes[:, 2] * boxes[:, 3] / (w * h) for boxes in (ours, theirs)]
    assert stats.ks_2samp(*areas).pvalue > 1e-3


def test_center_is_resize_then_center_crop():
    """The same pixels as torchvision's two steps where both are whole numbers."""
    crop = Crop("center", 224, resize=256)
    boxes = crop.boxes(0, 0, [0, 1], [512, 256], [256, 512])
    assert boxes.tolist() == [[144, 16, 224, 224], [16, 144, 224, 224]]


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (64, 72), (50, 50)])
def test_center_is_the_nearest_box_to_the_two_steps(size, resize):
    """Where torchvision's crop of the shrunk image comes from, to half a pixel at each side."""
    crop = Crop("center", size, resize=resize)
    for w, h in np.random.default_rng(5).integers(30, 900, (200, 2)):
        shrunk = v2.functional.resize(torch.empty(1, h, w, device="meta"), [resize])
        tall, wide = shrunk.shape[-2:]
        box = crop.boxes(0, 0, [0], [w], [h])[0].tolist()
        for side, long, first, length in ((w, wide, box[0], box[2]), (h, tall, box[1], box[3])):
            start = round((long - size) / 2)  # as v2.functional.center_crop has it
            assert abs(first - start * side / long) <= 0.5
            assert abs(first + length - (start + size) * side / long) <= 0.5


def test_center_random_is_every_crop_of_the_centre_square_equally_often():
    """Resize(256), CenterCrop(256) and RandomCrop(224) of an image that needs no resizing."""
    n = 50_000
    crop = Crop("center_random", 224, resize=256)
    left, top, width, height = crop.boxes(0, 0, np.arange(n), np.full(n, 400), np.full(n, 256)).T
    assert (width == 224).all() and (height == 224).all()
    for first, corner in ((left, 72), (top, 0)):  # (400 - 256) / 2
        moved, counts = np.unique(first - corner, return_counts=True)
        assert moved.tolist() == list(range(33))
        assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(left, top)[0, 1]) < 0.02
    # Of a larger image the same crops come from boxes as much larger.
    double = crop.boxes(0, 0, np.arange(n), np.full(n, 800), np.full(n, 512))
    assert (double == 2 * np.stack([left, top, width, height], axis=1)).all()


def test_flips_have_their_probability():
    ids = np.arange(100_000)
    for probability in (0.0, 0.3, 1.0):
        share = Crop("whole", 8, flip=probability).flips(0, 0, ids).mean()
        assert abs(share - probability) < 0.01


def test_replacement_is_a_function_of_seed_sample_and_attempt():
    drawn = {replacement(0, 5, attempt, 1000) for attempt in range(50)}
    assert len(drawn) > 45
    assert all(0 <= sample < 1000 for sample in drawn)
    assert replacement(0, 5, 0, 1000) == replacement(0, 5, 0, 1000)
    assert replacement(0, 5, 0, 1000) != replacement(1, 5, 0, 1000)
