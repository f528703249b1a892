"""Training rows made in every epoch: decode, crop, colour, one frozen forward pass, pool.

Shapes: N images per batch, S side of a crop, D features per layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastrot.data.dataset import BadSampleError
from fastrot.data.loader import Batch, Loader
from fastrot.distributed.world import World
from fastrot.errors import BadDataError
from fastrot.evaluation.linear.colour import coloured_views, draw_colours
from fastrot.evaluation.linear.rows import FeatureBatch
from fastrot.features.forward import FeatureNetwork
from fastrot.weights.load import Backbone


class OnlineRows:
    """Features of every sample once per epoch, with new crops and colours in each.

    A row is a pure function of the seed, the epoch and the sample. Each rank makes its share of a
    batch, and all get the whole batch, in the order that one rank makes it. Rows are smaller than
    the gradients of a thousand classes, and a head that sees all of them trains as on one rank.

    Args:
        network: the frozen network, already entered (``with network``).
        reader: loader of this rank's training images.
        backbone: source of the images' mean and standard deviation.
        seed: seed of the colours; the reader has that of crops and flips.
        coloured: apply colour jitter and lighting (``colour.py``).
        images_a_pass: images per forward pass.
        world: the joined ranks.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        reader: Loader,
        backbone: Backbone,
        *,
        seed: int,
        coloured: bool,
        images_a_pass: int,
        world: World,
    ) -> None:
        self._network, self._reader, self._backbone = network, reader, backbone
        self._seed, self._coloured, self._images_a_pass = seed, coloured, images_a_pass
        self._world = world

    @property
    def steps(self) -> int:
        """Return the number of batches per epoch; the last may be short."""
        return len(self._reader)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[FeatureBatch]:
        """Yield every sample once, skipping the first ``start_step`` batches.

        Features are of shape (N, D), float32; N counts the images of all ranks.

        Raises:
            BadDataError: an image cannot be read.
        """
        self._reader.set_epoch(epoch, start_step)
        try:
            for batch in self._reader:
                passes = self.views(batch, epoch).split(self._images_a_pass)
                parts = [self._network.features(views) for views in passes]
                features = {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
                yield self._of_all_ranks(FeatureBatch(features, batch.labels))
        except BadSampleError as error:
            raise BadDataError(
                f"bad sample {error.sample} ({error.name}): {error.reason}; repair or remove it, "
                "and run the same command again"
            ) from None

    def _of_all_ranks(self, rows: FeatureBatch) -> FeatureBatch:
        if self._world.size == 1:
            return rows
        sizes = [values.shape[1] for values in rows.features.values()]
        every = self._world.gather_rows(torch.cat(list(rows.features.values()), 1))
        features = dict(zip(rows.features, every.split(sizes, 1), strict=True))
        return FeatureBatch(features, self._world.gather_rows(rows.labels))

    def views(self, batch: Batch, epoch: int) -> torch.Tensor:
        """Return the images that the backbone sees, of shape (N, 3, S, S)."""
        if not self._coloured:
            return self._network.views(batch)
        colours = draw_colours(self._seed, epoch, batch.index.numpy())
        mean, std = self._backbone.mean, self._backbone.std
        return coloured_views(batch.images, batch.flips, colours, mean, std)
