"""A rank of an extraction: ``rank_extract.py OUT RUN PHOTOS CROPS [slow]``, under torchrun or not.

``slow``: the second rank takes 0.8 seconds more for each batch. Its 20 batches are 16 seconds, and
no rank waits for another for more than 11.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from fastrot.data.sampling.crops import Crop
from fastrot.data.sources.dataset import FolderDataset
from fastrot.distributed.world import joined, read_world, shorten_waits
from fastrot.features.extract import ExtractOptions, extract_features
from fastrot.features.spec import FeatureSpec
from fastrot.weights.load import load_backbone


def main() -> None:
    """Extract this rank's share."""
    out, run, photos, crops, *slow = sys.argv[1:]
    world = read_world()
    backbone = load_backbone(Path(run))
    if slow:
        if world.rank == 1:
            backbone.model.conv1.register_forward_hook(lambda *_: time.sleep(0.8))
    with joined(world, torch.device("cpu")):
        if slow:
            shorten_waits(world, 11)
        samples = FolderDataset(Path(photos))
        spec = FeatureSpec.settle(
            backbone,
            samples,
            torch.device("cpu"),
            layers=("layer2", "pool") if slow else ("stem", "layer1", "layer4", "pool"),
            crop=Crop("center", 64, resize=73),
            crops=int(crops),
        )
        how = ExtractOptions(batch=1 if slow else 4, workers=1, progress=False)
        extract_features(backbone, samples, Path(out), spec, how, world=world)


if __name__ == "__main__":
    main()
