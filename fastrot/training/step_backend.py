"""The implementations of an optimizer step, from plain to fast; all of them train the same.

``eager``: torch's operations, one by one. ``compile``: the model through ``torch.compile``.
``fused``: our batch normalisation with residual and ReLU as one operation, and four input
channels. The latter two are recorded as a CUDA graph on a GPU.
"""

from __future__ import annotations

import inspect
import logging
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastrot.config import Config
from fastrot.distributed.world import World
from fastrot.errors import UsageError
from fastrot.kernels.dispatch import KernelUnavailableError, choose
from fastrot.models.apex import require_apex
from fastrot.models.layers import Engine, fastest_batch_norm, share_batch_norm, use_batch_norm
from fastrot.models.precision import resolve_precision
from fastrot.system.console import Say

_SYNC_BUFFERS = next(  # torch 2.15 renamed it and warns about the old name
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)

StepName = Literal["eager", "compile", "fused"]


@dataclass(frozen=True)
class StepBackend:
    """One implementation of the step.

    Attributes:
        step: eager, compile or fused.
        batchnorm: implementation of batch norm: torch, fused (ours) or apex.
        graph: whether the whole step is one CUDA graph.
        why: the reason for the choice, as text.
    """

    step: StepName
    batchnorm: Engine
    graph: bool
    why: str

    @property
    def channels(self) -> int:
        """Return the input channels of the first convolution; the fourth is for tensor cores."""
        return 4 if self.step == "fused" else 3

    def describe(self) -> str:
        """Describe the choice in one line."""
        graph = ", one CUDA graph" if self.graph else ""
        return f"step: {self.step} (batch norm: {self.batchnorm}{graph}): {self.why}"


def choose_backend(config: Config, world: World, device: torch.device) -> StepBackend:
    """Return the implementation that the configuration names, or the fastest that works here.

    Args:
        config: settings of the run, which may still be ``auto``.
        world: the ranks.
        device: device of the model.

    Raises:
        UsageError: the named implementation cannot run here.
    """
    train = config.train
    if train.step == "auto":
        step, why = _fastest(device)
    else:
        step, why = train.step, "as set by train.step"
        _check(step, device)
    batchnorm = cast(Engine, train.batchnorm)
    shared = config.model.sync_bn and world.size > 1
    if train.batchnorm == "auto":
        batchnorm = "fused" if step == "fused" else "torch"
        if shared and device.type == "cpu":
            batchnorm = "fused"
            why += (
                "; ranks share their statistics in our slower reference: torch shares them on "
                "GPUs only (model.sync_bn=false keeps them per rank)"
            )
    if batchnorm == "apex":
        _check_apex(config, world, device)
    operations = ["rotate_views"]
    if batchnorm == "fused" and not (step == "eager" and train.batchnorm == "auto"):
        operations.append("batch_norm")
    for operation in operations:
        why += _compromise(operation, device)
    wanted = step != "eager" if train.cuda_graph is None else train.cuda_graph
    graph = wanted and device.type == "cuda"
    if graph and world.size > 1 and not train.cuda_graph:
        graph = False  # never measured: NCCL in a graph waits for a machine with two GPUs
        why += "; no CUDA graph with several ranks (train.cuda_graph=true records one)"
    if train.cuda_graph and device.type != "cuda":
        why += "; no CUDA graph on a CPU"
    return StepBackend(step, batchnorm, graph, why)


def _fastest(device: torch.device) -> tuple[StepName, str]:
    if device.type == "cpu":
        return "eager", "no GPU; compile would gain a few percent, and takes a minute to start"
    engine, why = fastest_batch_norm(device)
    return ("fused" if engine == "fused" else "eager"), why


def _compromise(operation: str, device: torch.device) -> str:
    """Return a note about a kernel that is not the one for this device; empty if it is.

    Raises:
        UsageError: FASTROT_KERNELS forces one that cannot run.
    """
    try:
        choice = choose(operation, device.type)
    except KernelUnavailableError as error:
        raise UsageError(str(error)) from None
    if choice.implementation != "reference":
        return ""
    return f"; {operation} uses the slow reference implementation: {choice.reason}"


def _check(step: str, device: torch.device) -> None:
    if step != "compile":
        return
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++")):
        raise UsageError(
            "train.step=compile: torch.compile needs a C++ compiler on a CPU, and there is no g++ "
            "or clang++; install one (apt-get install g++), or omit train.step"
        )


def _check_apex(config: Config, world: World, device: torch.device) -> None:
    precision = resolve_precision(config.train.precision, device, training=True)
    if device.type != "cuda" or precision != "fp16" or world.size > 1:
        raise UsageError(
            f"train.batchnorm=apex is for fp16 on one GPU, not {precision} on "
            f"{device.type} with {world.size} ranks; set train.precision=fp16, or leave "
            "train.batchnorm out"
        )
    require_apex()


def wrap_model(
    model: nn.Module,
    backend: StepBackend,
    *,
    world: World,
    device: torch.device,
    sync_bn: bool,
    static_graph: bool,
    say: Say,
) -> nn.Module:
    """Return the model as a step runs it; it shares tensors with ``model``, modified in place.

    Args:
        model: the model, on the device.
        backend: how a step is computed.
        world: the ranks.
        device: device of the model.
        sync_bn: share batch-norm statistics between the ranks.
        static_graph: whether every micro-batch of a rank is followed by a reduction of gradients.
        say: prints one line to the user.
    """
    shared = sync_bn and world.size > 1
    group = torch.distributed.group.WORLD if shared and backend.batchnorm == "fused" else None
    use_batch_norm(model, backend.batchnorm, group)
    if shared and backend.batchnorm == "torch":
        if device.type == "cuda":
            share_batch_norm(model)
        else:
            say(
                "batch-norm statistics stay on each rank: torch shares them on GPUs only "
                "(--set train.batchnorm=fused shares them here)"
            )
    wrapped = model
    if backend.step == "compile":
        if device.type == "cpu":  # it would complain about a missing CUDA that is not needed
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        wrapped = cast(nn.Module, torch.compile(model, dynamic=False))
    if world.size == 1:
        return wrapped
    # What a graph will hold must not have been on the default stream, which all others wait for.
    aside = torch.cuda.stream(torch.cuda.Stream(device)) if backend.graph else nullcontext()
    with aside:
        return DistributedDataParallel(
            wrapped,
            device_ids=[device.index] if device.type == "cuda" else None,
            # Running statistics are equal anyway or (sync_bn=false) copied from the main rank
            # when they are used.
            **{_SYNC_BUFFERS: False},  # type: ignore[arg-type]
            gradient_as_bucket_view=True,
            static_graph=static_graph,
        )
