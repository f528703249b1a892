"""Weight files as bytes: what a file is by its contents, whatever its name.

Only tensors and plain values are read (``torch.load(weights_only=True)``, safetensors): no file
runs code here.
"""

from __future__ import annotations

import argparse
import errno
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from fastrot.data.images.file_type import looks_like
from fastrot.errors import BadDataError, StorageError
from fastrot.system.files import open_regular

NAMES = ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.pth.tar", "*.ckpt")
"""Usual names of weight files."""

_START = 512
_LONGEST_HEADER = 100 * 2**20  # of safetensors, by its own rule
_AGAIN = "download or copy it again"
_FIX = "save the state dict alone, as .safetensors"


def read_weights(path: Path) -> Any:
    """Read the contents of a weight file: nested dictionaries, tensors and plain values.

    Args:
        path: a file in the format of safetensors or of ``torch.save``.

    Raises:
        BadDataError: it is another kind of file (then named), damaged, or holds more than tensors.
        StorageError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            start = file.read(_START)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None
    if _is_safetensors(start):
        return _read_safetensors(path)
    if what := _what_else(path, start):
        raise BadDataError(f"{path}: {what}")
    try:
        # Scripts save their options in their files; a namespace is a dictionary and runs no code.
        with (
            open_regular(path) as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            warnings.simplefilter("ignore")  # about pickles that torch then refuses
            # Pass an open file: given a path, torch trusts the name.
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a truncated archive: torch seeks before the beginning
            raise BadDataError(f"{path}: {_refusal(error)}") from None
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # unpickler and archive raise errors without a common type
        raise BadDataError(f"{path}: {_refusal(error)}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file; empty for one in another format.

    Raises:
        BadDataError: it is damaged.
        StorageError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            if not _is_safetensors(file.read(_START)):
                return {}
        with safe_open(path, "pt") as opened:
            return dict(opened.metadata() or {})
    except SafetensorError as error:
        raise BadDataError(f"{path}: not readable as safetensors: {error}; {_AGAIN}") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None


def _is_safetensors(start: bytes) -> bool:
    length = int.from_bytes(start[:8], "little")
    return 2 <= length <= _LONGEST_HEADER and start[8:9] == b"{"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadDataError(
            f"{path}: not readable as safetensors: {error}; it was truncated or damaged: {_AGAIN}"
        ) from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None


def _what_else(path: Path, start: bytes) -> str:
    """Return what a file is, and what to do, if torch.save did not write it; else empty."""
    if start.startswith(b"PK\x03\x04"):
        return _other_archive(path)
    if start.startswith(b"\x80") and start[1:2] <= b"\x05":
        return ""  # a pickle, with which files from before torch 1.6 begin
    if start[257:262] == b"ustar":
        return "a tar archive, not a weight file; unpack it and name the file inside"
    if start.startswith(b"\x1f\x8b"):
        return f"{looks_like(start)}, not a weight file; unpack it first (gunzip)"
    for name, is_it in (
        ("a numpy file (.npy)", start.startswith(b"\x93NUMPY")),
        ("a GGUF file", start.startswith(b"GGUF")),
        ("an ONNX graph", path.suffix == ".onnx" or _is_onnx(start)),
        ("a TensorFlow checkpoint", _is_tensorflow(path, start)),
    ):
        if is_it:
            return f"{name}, not a file that torch.save wrote; convert it to PyTorch, and {_FIX}"
    what = looks_like(start)
    if path.suffix == ".safetensors" and what.startswith("unknown"):
        return f"not readable as safetensors: it begins with {what}; {_AGAIN}"
    fix = "" if what.endswith(")") else "; download it again, or name another file"
    return f"{what}, not a weight file that torch.save wrote{fix}"


def _other_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return f"a torch file or zip archive that was truncated or damaged; {_AGAIN}"
    if any(name.endswith("/constants.pkl") for name in names):
        return f"a TorchScript program (torch.jit.save); {_FIX}"
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return f"numpy arrays (.npz), not a weight file that torch.save wrote; {_FIX}"
    return (
        "a zip archive, not a weight file that torch.save wrote; unpack it and name the file inside"
    )


def _is_onnx(start: bytes) -> bool:
    # A field for the version, then one for the producer, which is text.
    return start[:1] == b"\x08" and any(
        name in start[:64] for name in (b"pytorch", b"onnx", b"tf2onnx", b"skl2onnx", b"keras2onnx")
    )


def _is_tensorflow(path: Path, start: bytes) -> bool:
    shard = re.fullmatch(r".*\.(index|meta|data-\d{5}-of-\d{5})", path.name)
    return shard is not None or path.suffix == ".pb" or start.startswith(b"model_checkpoint_path")


def _refusal(error: Exception) -> str:
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return (
            f"it holds more than tensors ({found[1]}), and reading that could run code; if you "
            "trust it, save its state dict alone as .safetensors, and give that"
        )
    if "EOF" in text or "central directory" in text:
        return f"a torch file that was truncated or damaged; {_AGAIN}"
    problem = re.search(r"Unsupported operand \d+", text)
    reason = problem[0] if problem else text.partition("\n")[0][:120]
    return f"not a weight file that torch.save wrote ({reason}); {_FIX}"
