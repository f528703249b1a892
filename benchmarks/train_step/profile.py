"""A profiled training step as a tree of operations, with the device kernels that each started.

It is read from the Chrome trace of torch's profiler, which Perfetto can show as well. Operations
nest by time within their thread. A kernel's correlation id names the driver call that started it,
and that call is inside an operation.

Times are in microseconds, as in the trace.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

STEP = "fastrot.step"
"""Name of the range around the whole step."""

_HOST = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(eq=False)
class Operation:
    """One operation on the host."""

    name: str  # torch's name for it
    category: str  # ``cpu_op``, ``user_annotation``, ``cuda_runtime`` or ``cuda_driver``
    thread: Any  # thread that ran it
    start: float  # start time
    end: float  # end time
    sequence: int | None  # number of the autograd node that it creates or evaluates; None: neither
    parent: Operation | None = None  # operation that contains it
    inside: float = field(default=0.0)  # time of the operations directly inside it

    @property
    def own(self) -> float:
        """Return the time spent in the operation itself, excluding the operations inside it."""
        return max(self.end - self.start - self.inside, 0.0)

    def chain(self) -> list[Operation]:
        """Return the operation and all that enclose it, from the inside outwards."""
        found: list[Operation] = []
        here: Operation | None = self
        while here is not None:
            found.append(here)
            here = here.parent
        return found


@dataclass(frozen=True)
class DeviceWork:
    """One kernel, copy or fill."""

    name: str  # name of the kernel
    micros: float  # its duration
    launch: Operation | None  # the call that started it; None: unknown


@dataclass(frozen=True)
class StepTrace:
    """Profile of one step."""

    step: Operation  # the range around the step, on the main thread
    operations: list[Operation]  # operations of all threads, ordered by start
    device: list[DeviceWork]  # work on the GPU; empty on a CPU


def record_step(step: Callable[[], None], device: torch.device, written: Path) -> StepTrace:
    """Run a step once under the profiler.

    Args:
        step: function that has run before, so that nothing is compiled or allocated now.
        device: device that the step runs on.
        written: file for the Chrome trace.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise it prints when it starts
    with profile(activities=activities, acc_events=True) as profiler, record_function(STEP):
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    profiler.export_chrome_trace(str(written))
    return read_trace(json.loads(written.read_text()))


def keep_trace(written: Path, path: Path) -> None:
    """Copy a trace; compress it if the new name ends with ``.gz``."""
    opened = gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb")
    with written.open("rb") as source, opened as kept:
        shutil.copyfileobj(source, kept)


def read_trace(document: dict[str, Any]) -> StepTrace:
    """Return the step in a Chrome trace of torch's profiler.

    Raises:
        ValueError: the trace contains no step.
    """
    events = [event for event in document["traceEvents"] if event.get("ph") == "X"]
    operations, launches = [], {}
    for event in events:
        if event.get("cat") not in _HOST:
            continue
        given = event.get("args", {})
        start = float(event["ts"])
        operation = Operation(
            name=event["name"],
            category=event["cat"],
            thread=event["tid"],
            start=start,
            end=start + float(event.get("dur", 0)),
            sequence=given.get("Sequence number"),
        )
        operations.append(operation)
        if "correlation" in given:
            launches[given["correlation"]] = operation
    _nest(operations)
    steps = [operation for operation in operations if operation.name == STEP]
    if not steps:
        raise ValueError(f"no range {STEP!r} in the trace")
    device = [
        DeviceWork(
            event["name"],
            float(event.get("dur", 0)),
            launches.get(event.get("args", {}).get("correlation")),
        )
        for event in events
        if event.get("cat") in _DEVICE
    ]
    return StepTrace(steps[0], operations, device)


def _nest(operations: list[Operation]) -> None:
    """Sort operations by start, and find the operation that contains each."""
    operations.sort(key=lambda each: (each.start, -each.end))
    open_ones: dict[Any, list[Operation]] = {}
    for operation in operations:
        stack = open_ones.setdefault(operation.thread, [])
        while stack and stack[-1].end <= operation.start:
            stack.pop()
        if stack:
            operation.parent = stack[-1]
            # Clocks of two sources may differ slightly, so time beyond the parent's end is cut.
            stack[-1].inside += min(operation.end, stack[-1].end) - operation.start
        stack.append(operation)
