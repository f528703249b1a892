"""The reference for ``colour.coloured_views``: one image at a time, with Pillow and torchvision.

Shapes: N images, S side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torchvision.transforms import functional

from fastrot.evaluation.linear.colour import Colours

_OPERATIONS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
)


def coloured_views(
    images: torch.Tensor,
    flips: torch.Tensor,
    colours: Colours,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """Return what ``colour.coloured_views`` returns, (N, 3, S, S), float32, on the CPU."""
    views = []
    for row, pixels in enumerate(images.cpu().numpy()):
        image = Image.fromarray(pixels)
        if flips[row]:
            image = functional.hflip(image)
        for operation in colours.order[row]:
            image = _OPERATIONS[operation](image, float(colours.factors[row, operation]))
        tensor = functional.to_tensor(image)
        tensor = tensor + torch.from_numpy(colours.light[row])[:, None, None]
        views.append(functional.normalize(tensor, mean, std))
    return torch.stack(views)
