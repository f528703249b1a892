"""First-layer filters: the weights of the first convolution, after and before training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.models.backbones import build_model
from fastrot.report.html.blocks import Picture, Section, Strips
from fastrot.report.html.pictures import picture_uri
from fastrot.report.run.network import Network

_COLUMNS = 16
_SIDE = 28
_MOST = 256


def filters_section(network: Network | None, why: str) -> Section:
    """Show the filters of the newest checkpoint beside the initial ones."""
    section = Section("filters", "First-layer filters")
    if network is None:
        section.missing.append(f"first-layer filters: {why}")
        return section
    config = network.config
    first = _first(network.model)
    began = _first(build_model(config.model, seed=config.train.seed))
    count, _, side, _ = first.shape
    shown = f"{count}" if count <= _MOST else f"the first {_MOST} of {count}"
    section.lead = (
        f"{shown} filters of {side} x {side} pixels, each scaled to its own range; both sheets "
        "show a filter at the same place."
    )
    words = (
        (first, f"after {network.step:,} steps", "First-layer filters of the trained network"),
        (
            began,
            "before training",
            f"The same filters at initialisation, seed {config.train.seed}",
        ),
    )
    row = [Picture(picture_uri(_sheet(weight)), alt, text) for weight, text, alt in words]
    section.blocks.append(Strips([row], 2, wide=True, pixelated=True))
    return section


def _first(model: torch.nn.Module) -> NDArray[np.float32]:
    """Return the weights of the first convolution, of shape (C, 3, k, k)."""
    conv = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    weight: NDArray[np.float32] = conv.weight.detach().float().cpu().numpy()
    return weight


def _sheet(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw filters of shape (C, 3, k, k) on a transparent sheet of shape (H, W, 4)."""
    weights = weights[:_MOST]
    count, _, side, _ = weights.shape
    scale = max(1, _SIDE // side)
    cell = side * scale + 3
    rows = -(-count // _COLUMNS)
    sheet = np.zeros((rows * cell - 3, _COLUMNS * cell - 3, 4), np.uint8)
    for i, weight in enumerate(weights):
        low, high = float(weight.min()), float(weight.max())
        pixels = (weight - low) / max(high - low, 1e-12) * 255
        large = (
            np.rint(pixels).astype(np.uint8).transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        )
        top, left = i // _COLUMNS * cell, i % _COLUMNS * cell
        sheet[top : top + side * scale, left : left + side * scale, :3] = large
        sheet[top : top + side * scale, left : left + side * scale, 3] = 255
    return sheet
