"""Choice of the implementation that runs an operation.

By default Triton handles CUDA tensors, the compiled extension host memory, and the reference
whatever neither can. ``FASTROT_KERNELS=reference|cpp|cuda|triton`` forces one: if it cannot run,
the call fails and says why; nothing takes its place. ``cuda`` and ``triton`` name kernels of the
device, so they do not affect operations on the host (JPEG decoding).

Importing this module imports neither torch nor the extension.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "FASTROT_KERNELS"
NAMES = ("reference", "cpp", "cuda", "triton")

_DEVICE_ONLY = ("cuda", "triton")
_OPERATIONS = {  # fastest first
    "rotate_views": ("triton", "cpp", "reference"),
    "decode_jpeg": ("cpp", "reference"),
    "walk_jpeg": ("cpp", "reference"),
    "crop_decode": ("cpp",),  # whole batches; other loaders work without it
    "scalar_products": ("cpp", "reference"),  # used by cosine_topk
    "batch_norm": ("triton", "reference"),
}
_DECODING = ("decode_jpeg", "walk_jpeg", "crop_decode")  # need system libraries
_ERROR_FILE = Path(__file__).with_name("_native_error.txt")


class KernelUnavailableError(RuntimeError):
    """The implementation that FASTROT_KERNELS names does not exist or cannot run here."""


@dataclass(frozen=True)
class Choice:
    """The implementation chosen for an operation.

    Attributes:
        operation: e.g. ``rotate_views``.
        device: type of the device that holds the inputs, e.g. ``cpu`` or ``cuda``.
        implementation: one of NAMES.
        reason: why this one was chosen, as ``fastrot doctor`` prints it.
    """

    operation: str
    device: str
    implementation: str
    reason: str


def choose(operation: str, device: str = "cpu") -> Choice:
    """Choose the implementation of an operation for inputs on this type of device.

    Args:
        operation: ``rotate_views``, ``decode_jpeg``, ``walk_jpeg``, ``crop_decode``,
            ``scalar_products`` or ``batch_norm``.
        device: ``torch.device.type`` of the inputs.

    Raises:
        KernelUnavailableError: FASTROT_KERNELS holds an unknown name, or names an implementation
            that cannot run; or no implementation can run.
    """
    known = _OPERATIONS[operation]
    name = os.environ.get(VARIABLE) or None
    if name is not None and name not in NAMES:
        raise KernelUnavailableError(
            f"{VARIABLE}={name!r} is not an implementation; choose {', '.join(NAMES)}"
        )
    host_only = not set(known) & set(_DEVICE_ONLY)
    if name is None or (host_only and name in _DEVICE_ONLY):
        return _automatic(operation, device)
    if name not in known:
        raise KernelUnavailableError(
            f"{VARIABLE}={name}: {operation} has no such implementation; it has {', '.join(known)}"
        )
    if problem := unavailable(operation, name, device):
        raise KernelUnavailableError(
            f"{VARIABLE}={name}: {operation} cannot run it: {problem}; "
            f"unset {VARIABLE} to let fastrot choose"
        )
    return Choice(operation, device, name, f"forced by {VARIABLE}")


def plan() -> list[Choice | KernelUnavailableError]:
    """Return, for each operation on host and CUDA device, what would run, or why nothing can."""
    lines: list[Choice | KernelUnavailableError] = []
    for operation, device in (
        ("decode_jpeg", "cpu"),
        ("walk_jpeg", "cpu"),
        ("crop_decode", "cpu"),
        ("rotate_views", "cpu"),
        ("rotate_views", "cuda"),
        ("scalar_products", "cpu"),
        ("scalar_products", "cuda"),
        ("batch_norm", "cuda"),
    ):
        try:
            lines.append(choose(operation, device))
        except KernelUnavailableError as error:
            lines.append(error)
    return lines


def unavailable(operation: str, implementation: str, device: str) -> str | None:
    """Return why this implementation cannot take inputs on this device; None if it can."""
    if implementation == "cpp":
        if device != "cpu":
            return f"the inputs are on {device}, cpp takes host memory"
        if problem := native_problem():
            return problem
        if operation in _DECODING:
            return decode_problem()
        native = importlib.import_module("fastrot.kernels._native")
        if not hasattr(native, operation):
            return f"the compiled extension is older than {operation}; install fastrot again"
    if implementation == "triton":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if device != "cuda" and not triton_interpreted():
            return f"the inputs are on {device}, triton takes a CUDA device"
    return None


def triton_interpreted() -> bool:
    """Return whether Triton runs its kernels in Python on the host (its own switch, for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def native_problem() -> str | None:
    """Return why the extension cannot be used, with the compiler's output; None if it can."""
    try:
        importlib.import_module("fastrot.kernels._native")
    except ImportError as error:
        if _ERROR_FILE.is_file():
            words = _ERROR_FILE.read_text(encoding="utf-8", errors="replace").strip()
            return f"the compiled extension did not build: {words}"
        return f"the compiled extension is missing ({error}); install fastrot again to build it"
    return None


def decode_problem() -> str | None:
    """Return why the extension cannot decode JPEG; None if it can."""
    if problem := native_problem():
        return problem
    native = importlib.import_module("fastrot.kernels._native")
    if native.built_with_decode:
        return None
    return (
        "the compiled extension was built without libjpeg-turbo (2.1.5 or newer) or xxHash (0.8 or "
        "newer); install their headers (Debian and Ubuntu: libjpeg-dev libxxhash-dev), then "
        "fastrot again"
    )


def _automatic(operation: str, device: str) -> Choice:
    passed_over: list[str] = []
    for name in _OPERATIONS[operation]:
        if name == "triton" and device != "cuda":
            continue  # its interpreter is for tests
        problem = unavailable(operation, name, device)
        if problem is None:
            reason = "; ".join(passed_over) or "the fastest one for this device"
            return Choice(operation, device, name, reason)
        passed_over.append(f"not {name}: {problem}")
    raise KernelUnavailableError(f"{operation} cannot run here: {'; '.join(passed_over)}")
