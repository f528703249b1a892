"""Checkpoints that survive a kill at any system call.

A checkpoint is a folder ``step-00001234/`` of safetensors and JSON. The commit protocol:

1. write everything into ``.step-00001234.tmp-<nonce>/`` beside it, fsync each file,
2. read the tensors back and compare their hashes,
3. write ``COMMIT.json`` (sizes and hashes of the files, format, run id, and its own hash), fsync
   file and folder,
4. rename the folder to its final name, fsync the parent.

So a folder with the final name is complete unless the disk changed it, and the newest one whose
hashes match is used. No pointer file is trusted, nothing is pickled, and no valid checkpoint is
removed before its successor is committed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fastrot.errors import BadDataError, MismatchError, StorageError
from fastrot.system.files import make_folder, open_regular

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_STALE_SECONDS = 3600.0
_MAX_JSON_BYTES = 16 * 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        step: number of optimizer steps done.
        tensors: model and optimizer tensors by name, on the CPU, contiguous.
        state: everything else, plain JSON values.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    *,
    run_id: str,
    exports: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> Path:
    """Commit a checkpoint and return its folder.

    Args:
        folder: the run's ``checkpoints`` folder; created if missing.
        step: number of optimizer steps done; saving the same step twice keeps the first.
        tensors: tensors on any device, in any memory format (they are stored contiguous).
        state: plain JSON values.
        run_id: stored in the commit record; only the same run can resume from it.
        exports: further safetensors files by file name, e.g. ``backbone.safetensors``.

    Raises:
        StorageError: writing failed; the temporary folder is gone, older checkpoints are intact.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".step-{step:08d}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    # The same tensor may be in two files (an export): hash and copy each storage once.
    flat = {name: _flat(tensor) for name, tensor in tensors.items()}
    try:
        make_folder(folder, mode=0o775)  # never world-writable: it would not be resumed
        needed = _bytes(flat) + sum(_bytes(export) for export in (exports or {}).values())
        if shutil.disk_usage(folder).free < needed:  # before a full disk stops other programs, too
            raise OSError(errno.ENOSPC, f"{needed / 2**20:.0f} MiB are needed")
        if (final / "COMMIT.json").exists() and _is_valid(final, run_id):
            return final
        temporary.mkdir()
        save_file(flat, temporary / "tensors.safetensors")
        for name, export in (exports or {}).items():
            save_file({key: _flat(value) for key, value in export.items()}, temporary / name)
        _write_json(temporary / "state.json", dict(state))
        mode = stat.S_IMODE((temporary / "state.json").stat().st_mode)
        for path in temporary.iterdir():
            path.chmod(mode)  # safetensors creates files that nobody else can read
            _sync(path)
        hashes = {name: _hash(tensor) for name, tensor in flat.items()}
        _verify_tensors(temporary / "tensors.safetensors", hashes)
        commit = {
            "format": FORMAT,
            "run_id": run_id,
            "step": step,
            "tensors": hashes,
            "files": {path.name: _file_record(path) for path in sorted(temporary.iterdir())},
        }
        _write_json(temporary / "COMMIT.json", {**commit, "record": _record_hash(commit)})
        _sync(temporary / "COMMIT.json")
        _sync(temporary)
        damaged = folder / f".step-{step:08d}.tmp-{os.getpid()}-damaged"
        if final.exists():  # the same step, but it is damaged: move it out of the way first
            final.rename(damaged)
        temporary.rename(final)
        _sync(folder)
        shutil.rmtree(damaged, ignore_errors=True)
    except (OSError, SafetensorError, BadDataError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"checkpoint at step {step} not written to {folder}: {error}; free space or repair the "
            f"disk; older checkpoints are intact ({_free(folder)})"
        ) from error
    return final


def newest_checkpoint(folder: Path, run_id: str | None = None) -> Checkpoint | None:
    """Return the newest valid checkpoint; None if the folder holds none at all.

    Args:
        folder: the run's ``checkpoints`` folder.
        run_id: refuse checkpoints from another run (planted or copied); None accepts any.

    Raises:
        StorageError: there are checkpoints, but none is valid.
    """
    steps = list_checkpoints(folder)
    for path in reversed(steps):
        try:
            return load_checkpoint(path, run_id=run_id)
        except (BadDataError, StorageError) as error:
            log.warning("%s; trying the previous one", error)
    if steps:
        raise StorageError(
            f"{folder}: none of its {len(steps)} checkpoints is valid; nothing was changed; "
            "restore one from a backup, or start a new run with another --out"
        )
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the committed checkpoint folders, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def load_checkpoint(path: Path, *, run_id: str | None = None) -> Checkpoint:
    """Load one checkpoint folder and check every hash.

    Raises:
        BadDataError: a file is missing, was changed or belongs to another run.
        MismatchError: it was written in a newer format.
        StorageError: it cannot be read.
    """
    commit = _read_json(path / "COMMIT.json")
    if commit.pop("record", None) != _record_hash(commit):
        raise BadDataError(f"{path}/COMMIT.json: changed since it was written")
    if not isinstance(commit.get("format"), int) or commit["format"] > FORMAT:
        raise MismatchError(
            f"{path}: checkpoint format {commit.get('format')!r}, this fastrot reads up to "
            f"{FORMAT}; use the fastrot that wrote it, or a newer one"
        )
    if run_id is not None and commit.get("run_id") != run_id:
        raise BadDataError(f"{path}: it belongs to run {commit.get('run_id')!r}, not {run_id!r}")
    files, hashes, step = commit.get("files"), commit.get("tensors"), commit.get("step")
    if not (isinstance(files, dict) and isinstance(hashes, dict) and isinstance(step, int)):
        raise BadDataError(f"{path}/COMMIT.json: not a commit record")
    if not {"state.json", "tensors.safetensors"} <= files.keys():
        raise BadDataError(f"{path}/COMMIT.json: it does not list state and tensors")
    if (name := _NAME.fullmatch(path.name)) and int(name[1]) != step:
        raise BadDataError(f"{path}: renamed; it is the checkpoint at step {step}")
    for name, record in files.items():
        if Path(name).name != name or _file_record(path / name) != record:
            raise BadDataError(f"{path / name}: changed since it was written")
    tensors = _verify_tensors(path / "tensors.safetensors", hashes)
    return Checkpoint(step, tensors, _read_json(path / "state.json"))


def prune_checkpoints(
    folder: Path, keep: int, *, run_id: str | None = None, last: int | None = None
) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what dead writers left behind.

    Checkpoints that no resume would use do not count, and displace none that count: those that are
    visibly damaged (a file is missing or has another size), belong to another run, or are of a
    later step than the run has reached, since it resumed from an earlier one.
    A checkpoint that cannot be removed causes a warning: training continues.

    Args:
        folder: the run's ``checkpoints`` folder.
        keep: number of checkpoints to keep, at least 1.
        run_id: run whose checkpoints count; None: any run.
        last: the newest step that counts; None: any.
    """
    found = list_checkpoints(folder)
    counted = [
        path
        for path in found
        if (last is None or _step(path) <= last) and _looks_whole(path, run_id)
    ]
    oldest = next(iter(counted[-keep:]), None)
    doomed = found[: found.index(oldest)] if oldest else []
    doomed += [path for path in folder.iterdir() if ".tmp-" in path.name and _is_stale(path)]
    for path in doomed:
        try:
            # Rename it first: a folder with the final name is always complete.
            hidden = path.with_name(f".{path.name.lstrip('.')}.tmp-{os.getpid()}-removed")
            path.rename(hidden)
            shutil.rmtree(hidden)
        except OSError as error:
            log.warning("cannot remove %s: %s", path, error)


def _looks_whole(path: Path, run_id: str | None) -> bool:
    """Return whether all files exist with their recorded sizes, without reading them."""
    try:
        commit = _read_json(path / "COMMIT.json")
        if commit.pop("record", None) != _record_hash(commit):
            return False
        if run_id is not None and commit["run_id"] != run_id:
            return False
        sizes = {path / name: record["bytes"] for name, record in commit["files"].items()}
        return all(file.stat().st_size == size for file, size in sizes.items())
    except (BadDataError, StorageError, OSError, KeyError, TypeError, AttributeError):
        return False


def _is_stale(path: Path) -> bool:
    match = re.search(r"\.tmp-(\d+)-", path.name)
    try:
        if match and not Path(f"/proc/{match[1]}").exists():
            return True
        return time.time() - path.stat().st_mtime > _STALE_SECONDS
    except OSError:
        return False


def _is_valid(path: Path, run_id: str) -> bool:
    try:
        load_checkpoint(path, run_id=run_id)
    except (BadDataError, StorageError, MismatchError):
        return False
    return True


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy on the CPU; safetensors refuses tensors that share memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _hash(tensor: torch.Tensor) -> str:
    digest = xxhash.xxh3_128(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _verify_tensors(path: Path, hashes: Mapping[str, str]) -> dict[str, torch.Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadDataError(f"{path}: not readable as safetensors: {error}") from error
    if tensors.keys() != hashes.keys():
        raise BadDataError(f"{path}: its tensors differ from those in its commit record")
    for name, tensor in tensors.items():
        if _hash(tensor) != hashes[name]:
            raise BadDataError(f"{path}: tensor {name!r} changed since it was written")
    return tensors


def _record_hash(commit: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(commit, sort_keys=True).encode())


def _file_record(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    try:
        with open_regular(path) as file:
            while chunk := file.read(2**22):
                digest.update(chunk)
            return {"bytes": file.tell(), "xxh3_128": digest.hexdigest()}
    except FileNotFoundError:
        raise BadDataError(f"{path}: missing") from None
    except OSError as error:
        raise StorageError(f"{path}: {error}") from error


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_JSON_BYTES + 1)
        if len(text) > _MAX_JSON_BYTES:
            raise BadDataError(f"{path}: larger than {_MAX_JSON_BYTES} bytes")
        tree = json.loads(text)
    except FileNotFoundError:
        raise BadDataError(f"{path}: missing") from None
    except OSError as error:
        raise StorageError(f"{path}: {error}") from error
    except (ValueError, RecursionError):
        raise BadDataError(f"{path}: not JSON") from None
    if not isinstance(tree, dict):
        raise BadDataError(f"{path}: not a JSON object")
    return tree


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free"
    except OSError:
        return "free space unknown"
