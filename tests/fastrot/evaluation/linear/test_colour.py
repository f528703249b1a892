"""Jitter and lighting against Pillow and torchvision, and what is drawn for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastrot.evaluation.linear import colour_reference
from fastrot.evaluation.linear.colour import Colours, coloured_views, draw_colours

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def photos(test_data: Callable[[str], Path]) -> torch.Tensor:
    """Of shape (24, 96, 96, 3): photos, and a black, a white and a noisy image."""
    paths = sorted(test_data("imagenette-128").glob("train/*/*.*"))[:2000:100]
    images = [np.asarray(Image.open(p).convert("RGB").resize((96, 96))) for p in paths]
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    grey = np.full_like(noise, 127)
    images += [noise, grey, np.zeros_like(noise), np.full_like(noise, 255)]
    return torch.from_numpy(np.stack(images))


def test_every_bit_is_pillows_and_torchvisions(photos: torch.Tensor) -> None:
    count = len(photos)
    assert count >= 20
    flips = torch.arange(count) % 2 == 0
    for epoch in range(4):
        colours = draw_colours(7, epoch, np.arange(count))
        ours = coloured_views(photos, flips, colours, MEAN, STD)
        theirs = colour_reference.coloured_views(photos, flips, colours, MEAN, STD)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_levels(photos: torch.Tensor) -> None:
    colours = draw_colours(7, 0, np.arange(len(photos)))
    flips = torch.arange(len(photos)) % 2 == 0
    ours = coloured_views(photos, flips, colours, MEAN, STD)
    theirs = coloured_views(photos.cuda(), flips.cuda(), colours, MEAN, STD).cpu()
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-6)  # a level is 0.017


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4, 3.0])
@pytest.mark.parametrize("operation", [0, 1, 2])
def test_one_operation_at_its_limits(photos: torch.Tensor, operation: int, factor: float) -> None:
    count = len(photos)
    factors = np.ones((count, 3), np.float32)
    factors[:, operation] = factor
    order = np.tile(np.array([2, 0, 1]), (count, 1))
    colours = Colours(factors, order, np.zeros((count, 3), np.float32))
    flips = torch.zeros(count, dtype=torch.bool)
    ours = coloured_views(photos, flips, colours, MEAN, STD)
    theirs = colour_reference.coloured_views(photos, flips, colours, MEAN, STD)
    assert torch.equal(ours, theirs)
    plain = ((photos.permute(0, 3, 1, 2) / 255) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(
        STD
    )[:, None, None]
    assert torch.equal(ours, plain) == (factor == 1.0)


def test_the_images_given_are_left_as_they_are(photos: torch.Tensor) -> None:
    before = photos.clone()
    colours = draw_colours(0, 0, np.arange(len(photos)))
    coloured_views(photos, torch.zeros(len(photos), dtype=torch.bool), colours, MEAN, STD)
    assert torch.equal(photos, before)


def test_what_is_drawn_does_not_depend_on_the_batch() -> None:
    whole = draw_colours(3, 5, np.arange(100))
    part = draw_colours(3, 5, np.array([42, 7]))
    for all_rows, rows in zip(whole, part, strict=True):
        assert (all_rows[[42, 7]] == rows).all()
    for other in (draw_colours(3, 6, np.arange(100)), draw_colours(4, 5, np.arange(100))):
        assert (other.factors != whole.factors).all()
        assert (other.light != whole.light).any()


def test_what_is_drawn_has_the_published_distribution() -> None:
    colours = draw_colours(0, 0, np.arange(60_000))
    assert colours.factors.min() >= 0.6 and colours.factors.max() <= 1.4
    assert np.allclose(colours.factors.mean(0), 1, atol=0.005)
    assert np.allclose(colours.factors.std(0), 0.8 / np.sqrt(12), atol=0.005)
    orders, counts = np.unique(colours.order, axis=0, return_counts=True)
    assert len(orders) == 6 and np.allclose(counts, 10_000, atol=500)
    # Lighting is normal along ImageNet's components, a tenth of each eigenvalue wide.
    components = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    along = np.linalg.solve(components, colours.light.T.astype(np.float64)).T
    assert np.allclose(along.std(0), [0.02175, 0.00188, 0.00045], rtol=0.02)
    assert np.allclose(along.mean(0), 0, atol=3e-4)
    assert np.allclose(np.corrcoef(along.T), np.eye(3), atol=0.02)
    assert np.allclose((along / along.std(0) > 1.6449).mean(0), 0.05, atol=0.004)
    # Factors do not go with one another, nor with the order.
    assert np.allclose(np.corrcoef(colours.factors.T), np.eye(3), atol=0.02)
    for row in orders:
        chosen = (colours.order == row).all(1)
        assert np.allclose(colours.factors[chosen].mean(0), 1, atol=0.02)
