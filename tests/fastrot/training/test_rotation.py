"""The pretext task: which turn is which class, in which row, drawn how."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastrot.config import load_config
from fastrot.data.loader import Batch
from fastrot.data.sampling.draw import Views, draw_turns
from fastrot.training.rotation import RotationTask

CPU = torch.device("cpu")


def batch(images: torch.Tensor, *, flips: list[bool] | None = None, views: Views = "all") -> Batch:
    count = len(images)
    return Batch(
        images=images,
        labels=torch.full((count,), -1),
        index=torch.arange(100, 100 + count),
        flips=torch.tensor(flips or [False] * count),
        turns=torch.from_numpy(draw_turns(views, 7, 2, np.arange(100, 100 + count))),
    )


class BrightCorner(nn.Module):
    """Logit k is the brightness of the corner where k counter-clockwise turns put the top right."""

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        corners = [(0, -1), (0, 0), (-1, 0), (-1, -1)]
        return torch.stack([views[:, 0, y, x] for y, x in corners], 1)


def corner_images(count: int) -> torch.Tensor:
    images = torch.zeros(count, 8, 8, 3, dtype=torch.uint8)
    images[:, 0, -1] = 255
    return images


def test_class_k_is_k_quarter_turns_counter_clockwise_image_major() -> None:
    task = RotationTask(load_config("digits"), CPU, None)
    prediction = task.predict(BrightCorner(), task.inputs(batch(corner_images(3))))
    assert prediction.targets.tolist() == [0, 1, 2, 3] * 3
    assert prediction.correct.all()
    assert prediction.logits.shape == (12, 4)


def test_flip_comes_before_the_turn() -> None:
    """Flipped, the bright corner starts top left: every turn then looks like the next one."""
    task = RotationTask(load_config("digits"), CPU, None)
    prediction = task.predict(BrightCorner(), task.inputs(batch(corner_images(1), flips=[True])))
    assert prediction.logits.argmax(1).tolist() == [1, 2, 3, 0]


def test_one_view_draws_a_turn_an_image_from_its_id() -> None:
    ids = np.arange(4000)
    turns = draw_turns("one", 7, 2, ids)
    assert turns.shape == (4000, 1) and turns.dtype == np.uint8
    assert (np.bincount(turns[:, 0], minlength=4) > 900).all()
    np.testing.assert_array_equal(draw_turns("one", 7, 2, ids[::-1]), turns[::-1])
    for other in (draw_turns("one", 8, 2, ids), draw_turns("one", 7, 3, ids)):
        assert 0.2 < (other == turns).mean() < 0.3  # independent, so a quarter agree
    task = RotationTask(load_config("digits", ["pretext.views=one"]), CPU, None)
    prediction = task.predict(BrightCorner(), task.inputs(batch(corner_images(5), views="one")))
    assert prediction.correct.all() and prediction.targets.shape == (5,)
    assert task.inputs(batch(corner_images(5))).turns.shape == (5, 4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_views_are_normalised_in_the_type_of_the_forward_pass(dtype: torch.dtype | None) -> None:
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, views: torch.Tensor) -> torch.Tensor:
            seen.append(views)
            return views.mean((2, 3)).repeat(1, 2)[:, :4]

    config = load_config("resnet50_8xb16-steplr-70e")
    images = torch.full((1, 8, 8, 3), 51, dtype=torch.uint8)
    task = RotationTask(config, CPU, dtype)
    task.predict(Spy(), task.inputs(batch(images)))
    (views,) = seen
    assert views.dtype == (dtype or torch.float32)
    assert views.is_contiguous(memory_format=torch.channels_last)
    expected = (0.2 - torch.tensor(config.data.mean)) / torch.tensor(config.data.std)
    torch.testing.assert_close(views[0, :, 0, 0], expected.to(views.dtype))
