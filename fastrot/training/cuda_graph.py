"""A training step as a CUDA graph: recorded once, then launched with a single call by the host.

A step of a ResNet-50 is about a thousand kernels. Launched one by one, the small ones wait for the
host; in a graph they do not. While a replay runs, the host draws the next batch, which is copied
on a separate stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastrot.errors import FastrotError

_WARM_UP = 3  # convolution algorithms are chosen, workspaces allocated
_WARM_UP_RANKS = 11  # DistributedDataParallel reorders its buckets in the first ten
_AHEAD = 3  # steps: each queued one keeps its batch in device memory


class GraphError(FastrotError):
    """The step cannot be recorded."""


class StepGraph:
    """Runs ``body``: the first few calls directly, then one is recorded and all others replay it.

    All steps train: none is repeated or thrown away for the recording.

    Args:
        body: works on the device alone, on memory that stays in place: tensors that outlive a call
            are written in place. Its inputs are named tuples of tensors, one for each pass; it is
            recorded again when their shapes change.
        device: a GPU.
        ranks: number of ranks that train together.
    """

    def __init__(
        self, body: Callable[[Sequence[Any]], None], device: torch.device, *, ranks: int = 1
    ) -> None:
        self._warm_up = _WARM_UP if ranks == 1 else _WARM_UP_RANKS
        self._body = body
        self._device = device
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._held: list[Any] = []
        self._shapes: list[torch.Size] = []
        self._aside_stream = torch.cuda.Stream(device)
        self._queued: deque[torch.cuda.Event] = deque()

    def __call__(self, passes: Sequence[Any]) -> None:
        """Run the step on these inputs.

        Raises:
            GraphError: the step does something that a graph cannot hold.
        """
        shapes = [tensor.shape for inputs in passes for tensor in inputs]
        if shapes != self._shapes:  # crops have grown: record again
            self._shapes, self._graph, self._held, self._calls = shapes, None, [], 0
        if self._graph is not None:
            self._hold(passes)
            self._graph.replay()
            self._wait_for_an_earlier_one()
        elif self._calls < self._warm_up:
            self._aside(passes)
        else:
            self._graph = self._record(passes)
            self._graph.replay()  # recording ran nothing
        self._calls += 1

    def _hold(self, passes: Sequence[Any]) -> None:
        """Copy the inputs to where the graph reads them."""
        if not self._held:
            self._held = [type(each)(*(tensor.clone() for tensor in each)) for each in passes]
            return
        for held, inputs in zip(self._held, passes, strict=True):
            for there, tensor in zip(held, inputs, strict=True):
                there.copy_(tensor, non_blocking=True)

    def _wait_for_an_earlier_one(self) -> None:
        """Keep the host from running far ahead: unlike single kernels, replays do not stop it."""
        self._queued.append(torch.cuda.Event())
        self._queued[-1].record()
        if len(self._queued) > _AHEAD:
            self._queued.popleft().synchronize()

    def _aside(self, passes: Sequence[Any]) -> None:
        """Run the body on another stream, as it will be recorded."""
        here, aside = torch.cuda.current_stream(self._device), self._aside_stream
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            self._body(passes)
        here.wait_stream(aside)
        for inputs in passes:
            for tensor in inputs:
                tensor.record_stream(aside)

    def _record(self, passes: Sequence[Any]) -> torch.cuda.CUDAGraph:
        self._hold(passes)
        graph = torch.cuda.CUDAGraph()
        try:
            # Loader threads may allocate memory meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._body(self._held)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise GraphError(
                f"the step cannot be recorded as a CUDA graph ({str(error).splitlines()[0]}); set "
                "train.cuda_graph=false"
            ) from error
        return graph
