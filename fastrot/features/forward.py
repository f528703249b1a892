"""The forward pass of an extraction: from batches of images to pooled float16 rows on the host.

Shapes: N images per batch, D values per layer, S side of a crop.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

import torch

from fastrot.data.loader import Batch
from fastrot.errors import NonFiniteError
from fastrot.features.cache import Features, what_is_wrong
from fastrot.features.pooling import pool
from fastrot.features.spec import FeatureSpec
from fastrot.kernels.rotate.op import rotate_views
from fastrot.kernels.rotate.reference import normalisation_table
from fastrot.models.layers import Engine, fastest_batch_norm, use_batch_norm
from fastrot.models.precision import autocast_dtype
from fastrot.system.in_flight import InFlight
from fastrot.weights.load import Backbone


class _Result(NamedTuple):
    """Features on their way to the host."""

    first: int
    half: dict[str, torch.Tensor]
    full: dict[str, torch.Tensor]
    finite: torch.Tensor
    copied: torch.cuda.Event | None


class FeatureNetwork:
    """A copy of the backbone on the device that returns pooled layers; a context manager.

    Args:
        backbone: the network; it is not modified.
        spec: layers and precision.
        device: where the copy runs.
        engine: batch norm implementation; None: the fastest here. The fused one uses views with a
            fourth channel of zeros.

    Attributes:
        ahead: number of batches to start before the oldest one is waited for.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: FeatureSpec,
        device: torch.device,
        *,
        engine: Engine | None = None,
    ) -> None:
        self._device, self._layers, self._exact = device, spec.layers, spec.precision == "fp32"
        self._dtype = autocast_dtype(spec.precision)
        self._model = copy.deepcopy(backbone.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model.eval()
        engine = engine or fastest_batch_norm(device)[0]
        use_batch_norm(self._model, engine)
        self._channels = 4 if engine == "fused" else 3
        table = normalisation_table(backbone.mean, backbone.std, self._dtype or torch.float32)
        self._table = table.to(device)
        self.ahead = 1 if device.type == "cuda" else 0
        self._stack = ExitStack()

    def __enter__(self) -> FeatureNetwork:
        self._stack.enter_context(torch.inference_mode())
        if self._device.type == "cuda":
            # The same algorithm in every run, and no TensorFloat if float32 was requested.
            self._stack.enter_context(
                torch.backends.cudnn.flags(
                    enabled=True,
                    benchmark=False,
                    deterministic=True,
                    allow_tf32=not self._exact,
                )
            )
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def start(self, batch: Batch) -> _Result:
        """Queue the forward pass of a batch and the copy to the host."""
        full = self.features(self.views(batch))
        half = {name: values.half() for name, values in full.items()}
        finite = torch.stack([values.isfinite().all() for values in half.values()]).all()
        first = int(batch.index[0])
        if self._device.type != "cuda":
            return _Result(first, half, full, finite, None)
        half = {name: _to_host(values) for name, values in half.items()}
        finite = _to_host(finite)
        copied = torch.cuda.Event()
        copied.record()
        return _Result(first, half, full, finite, copied)

    def views(self, batch: Batch) -> torch.Tensor:
        """Return images, flipped as the batch says and normalised, of shape (N, 3 or 4, S, S)."""
        turns = torch.zeros(len(batch.images), 1, dtype=torch.uint8, device=self._device)
        return rotate_views(batch.images, turns, batch.flips, self._table, channels=self._channels)

    def features(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return pooled layers of views (N, 3 or 4, S, S): each (N, D), float32, on the device."""
        with (
            nullcontext() if self._dtype is None else torch.autocast(self._device.type, self._dtype)
        ):
            stages = self._model.stages(views)
        return {name: pool(name, stages[name]) for name in self._layers}

    def finish(self, result: _Result) -> dict[str, Features]:
        """Wait for a batch's features and return them by layer, of shape (N, D), float16.

        Raises:
            NonFiniteError: a feature is not finite as float16.
        """
        if result.copied is not None:
            result.copied.synchronize()
        if not bool(result.finite):
            for name, values in result.half.items():
                if not values.isfinite().all():
                    full = result.full[name].float().cpu().numpy()
                    raise NonFiniteError(what_is_wrong(full, name, first_sample=result.first))
        return {name: values.numpy() for name, values in result.half.items()}


def pipelined(
    network: FeatureNetwork, batches: Iterator[Batch]
) -> Iterator[tuple[int, Mapping[str, Features]]]:
    """Yield first sample and features of every batch; a GPU computes the next one meanwhile.

    Features computed before a bad image are yielded before its error is raised.
    """
    window = InFlight(
        network.start, lambda result: (result.first, network.finish(result)), ahead=network.ahead
    )
    yield from window.map(batches)


def _to_host(values: torch.Tensor) -> torch.Tensor:
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)
