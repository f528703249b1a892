"""Keys of measurements: what they depend on besides settings, that is, code, machine and data."""

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
    """Return a hash of fastrot's sources, compiled ones included, and of the packages they use."""
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
    """Return what distinguishes this machine, without its name: processor, cores, GPUs."""
    record = environment_record()
    gpus = sorted(_gpus())
    kinds = ", ".join(f"{gpus.count(kind)} x {kind}" for kind in dict.fromkeys(gpus))
    return f"{record['processor']}, {record['cores']} cores, {kinds or 'no GPU'}"


def _gpus() -> Iterator[str]:
    """Yield the names of NVIDIA GPUs from the driver, which does not require torch."""
    for path in _GPUS.glob("*/information"):
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                yield value.strip()


def slurm_place(slurm: SweepSlurmSettings) -> str:
    """Return what is known of a cluster's machine before the job runs: what was requested."""
    keys = ("partition", "constraint", "cpus_per_task", "gpus_per_node", "mem_gb")
    return "slurm, " + ", ".join(f"{key} {getattr(slurm, key)}" for key in keys)


def cell_key(sweep: SweepSettings, cell: Cell, *, code: str, place: str) -> str:
    """Return the name of a cell's files, which is the same for equivalent measurements.

    Args:
        sweep: how the cell is measured.
        cell: the cell.
        code: result of ``code_hash``.
        place: result of ``host_name`` or ``slurm_place``.
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
    """Return size and time of a file, so that another file of the same name is measured again."""
    path = Path(name or "")
    if name is None or not path.is_file():
        return []
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
