"""What a measurement depends on besides its settings: the code, the machine, the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fastrot
from fastrot.benchmarks.sweep.settings import Cell, SweepSettings
from fastrot.distributed.slurm import SweepSlurmSettings
from fastrot.system.machine import environment_record, version

_SOURCES = {".py", ".cpp", ".h"}
_DECIDING = ("torch", "triton", "numpy", "ffcv", "numba")
_GPUS = Path("/proc/driver/nvidia/gpus")


def code_hash() -> str:
    """Hash of the sources, of fastrot and what it is compiled from, and of what they run on."""
    package = Path(fastrot.__file__).parent
    files = {
        path
        for folder in (package, package / "kernels", package / "benchmarks")  # links in a checkout
        for path in folder.resolve().rglob("*")
        if path.suffix in _SOURCES
    }
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for name in _DECIDING:
        digest.update(f"{name} {version(name)}\0".encode())
    return digest.hexdigest()[:16]


def host_name() -> str:
    """What tells this machine from others, without its name: processor, cores, GPUs."""
    record = environment_record()
    gpus = sorted(_gpus())
    kinds = ", ".join(f"{gpus.count(kind)} x {kind}" for kind in dict.fromkeys(gpus))
    return f"{record['processor']}, {record['cores']} cores, {kinds or 'no GPU'}"


def _gpus() -> Iterator[str]:
    """Names of NVIDIA's GPUs, as their driver tells them: no reason to load torch."""
    for path in _GPUS.glob("*/information"):
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                yield value.strip()


def slurm_place(slurm: SweepSlurmSettings) -> str:
    """What is known of a cluster's machine before the job runs: what was asked for."""
    keys = ("partition", "constraint", "cpus_per_task", "gpus_per_node", "mem_gb")
    return "slurm, " + ", ".join(f"{key} {getattr(slurm, key)}" for key in keys)


def cell_key(sweep: SweepSettings, cell: Cell, *, code: str, place: str) -> str:
    """Name of a cell's files: two cells have the same if their measurements mean the same.

    Args:
        sweep: how it is measured.
        cell: what is measured.
        code: of ``code_hash``.
        place: of ``host_name`` or ``slurm_place``.
    """
    tree: Mapping[str, Any] = {
        "kind": sweep.kind,
        "measured": [sweep.repeats, sweep.seconds, sweep.warm_up_steps],
        "config": cell.config.model_dump(mode="json"),
        "ranks": [cell.ranks, cell.nodes],
        "data": _data_state(cell.config.data.train),
        "code": code,
        "place": place,
    }
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _data_state(name: str | None) -> list[Any]:
    """Size and time of a file: another file of the same name is measured anew."""
    path = Path(name or "")
    if name is None or not path.is_file():
        return []
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
