"""Predict how much memory training takes on its device, before the first step.

A small step is run on the host, with a few views of a few pixels, and every storage is counted
while it lives: what autograd keeps for the backward pass, what is freed on the way, gradients as
they appear. Maps (N views, C channels, H rows, W columns) grow with the number of views and with
the area; everything else keeps its size. What cannot be counted was measured on a CPU and is left
out on a GPU, where the prediction is a lower bound.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fastrot.config import Config
from fastrot.distributed.world import World
from fastrot.errors import OutOfMemoryError
from fastrot.models.backbones import TURNS, build_model
from fastrot.models.layers import use_batch_norm
from fastrot.models.precision import autocast_dtype
from fastrot.system.console import Say
from fastrot.system.machine import free_memory
from fastrot.training.step_backend import StepBackend

_VIEWS, _SIDE = 4, 32  # no convolution has only four output channels
_BATCHES_AHEAD = 8  # held by a loader

# On a CPU, small blocks come from a heap, which keeps holes; larger ones (glibc) from the system.
_HEAP_BYTES = 32 * 2**20
_HEAP_GROWTH = 1.4
_LIBRARIES = 190e6  # code and caches of torch, oneDNN and MKL that the first step loads

_MUCH = 0.8  # fraction of the free memory

_aten = torch.ops.aten


def check_memory(
    config: Config, images: int, passes: int, backend: StepBackend, world: World, say: Say
) -> None:
    """Refuse a run that needs more memory than its device has free, before its first step.

    Args:
        config: settings with device and precision resolved.
        images: source images in one micro-batch of a rank.
        passes: micro-batches per step.
        backend: how a step is computed.
        world: the ranks; those on one machine share its memory.
        say: prints one line to the user if most of the memory will be taken.

    Raises:
        OutOfMemoryError: it needs more; the message has both figures and the micro batch that fits.
    """
    on_cpu = config.train.device == "cpu"
    free = free_memory() // world.local_size if on_cpu else torch.cuda.mem_get_info()[0]
    if not free:  # the system does not report it
        return
    needed = predict(config, images, passes, backend)
    views = TURNS if config.pretext.views == "all" else 1
    where = "memory" if on_cpu else "memory of the GPU"
    shared = f" for each of {world.local_size} ranks" if on_cpu and world.local_size > 1 else ""
    line = (
        f"training takes about {needed / 1e9:.1f} GB of {where} ({images} images, {images * views} "
        f"views in a pass at {config.data.resolution} px, {config.train.precision}), and "
        f"{free / 1e9:.1f} GB are free{shared}"
    )
    if needed <= free:
        if needed > _MUCH * free:
            say(f"{line}: little is left for anything else")
        return
    share = images * passes
    for micro in (n for n in range(images - 1, 0, -1) if share % n == 0):
        if predict(config, micro, share // micro, backend) <= _MUCH * free:
            fix = f"--set train.micro_batch={micro} fits (batch norm then sees {micro} images at a "
            fix += f"time instead of {images})"
            break
    else:
        fix = "no train.micro_batch makes it fit; lower data.resolution or model.width"
    raise OutOfMemoryError(f"{line}; {fix}")


def predict(config: Config, images: int, passes: int, backend: StepBackend) -> int:
    """Return the peak memory of model, optimizer, steps and loader on the device, in bytes.

    Args:
        config: settings with device and precision resolved.
        images: source images in one micro-batch of a rank.
        passes: micro-batches per step; with several, gradients are kept beside the maps.
        backend: how a step is computed.
    """
    side, on_cpu = config.data.resolution, config.train.device == "cpu"
    views = images * (TURNS if config.pretext.views == "all" else 1)
    half = autocast_dtype(config.train.precision)
    double = torch.float64 if config.train.precision == "fp64" else torch.float32
    model = build_model(config.model, seed=0).to(dtype=double)
    use_batch_norm(model, "torch" if backend.batchnorm == "torch" else "fused")
    copies = double is torch.float64 or (
        half is not None and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    live = _Live(views / _VIEWS * (side / _SIDE) ** 2, columns=on_cpu and copies, heap=on_cpu)
    with live:
        for parameter in model.parameters():
            live.count(parameter)
        live.bytes *= 2 if config.optim.momentum else 1
        for _ in range(min(passes, 2)):
            with torch.autocast("cpu", torch.bfloat16, enabled=half is not None):
                inputs = torch.zeros(_VIEWS, backend.channels, _SIDE, _SIDE, dtype=half or double)
                logits = model(inputs.to(torch.bfloat16) if half else inputs)
            F.cross_entropy(logits.float(), torch.zeros(_VIEWS, dtype=torch.long)).backward()
    loader = _BATCHES_AHEAD * images * side * side * 3 if on_cpu else 0
    return int(live.peak + loader + (_LIBRARIES if on_cpu else 0))


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations create, while they live.

    Args:
        growth: factor by which the maps of a real step are larger.
        columns: whether convolutions copy every patch of their input before multiplying (im2col).
        heap: whether small storages come from a heap, which keeps holes between them.

    Attributes:
        bytes: size of all live storages.
        peak: largest size so far, including temporary memory of convolutions.
    """

    def __init__(self, growth: float, *, columns: bool, heap: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0.0
        self._growth, self._columns, self._heap = growth, columns, heap
        self._sizes: dict[int, float] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping torch's compiler would load it, which takes seconds

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        self.peak = max(self.peak, self.bytes + self._inside(func, args, out))
        return out

    def _inside(self, func: Any, args: tuple[Any, ...], out: Any) -> float:
        """Return the bytes of temporary memory that an operation takes while it runs."""
        if func is _aten.convolution.default:
            y, weight = out, args[1]
        elif func is _aten.convolution_backward.default:
            y, weight = args[0], args[2]
        else:
            return 0
        if not self._columns or weight[0, 0].numel() == 1:
            return 0
        patches = y.numel() // y.shape[1]
        return self._growth * float(patches * weight[0].numel() * y.element_size())

    def count(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        is_map = tensor.ndim == 4 and len(tensor) == _VIEWS
        size = storage.nbytes() * (self._growth if is_map else 1)
        if self._heap and size < _HEAP_BYTES:
            size *= _HEAP_GROWTH
        self._sizes[key] = size
        self.bytes += size
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)
