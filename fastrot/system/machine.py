"""The machine as this process may use it, and the record of it stored with every result."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from fastrot.system.processes import ask_tool

_RECORDED_PACKAGES = (
    "fastrot",
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "pillow",
    "numba",
    "ffcv",
    "safetensors",
)
_RECORDED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_JOB_ID", "WORLD_SIZE")
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return the cores this process may use, by its affinity mask and its container's quota.

    ``os.cpu_count()`` counts those of the machine: in a container or a Slurm job, far too many.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota()
    return max(1, min(cores, int(quota + 0.5))) if quota else cores


def decoding_workers(*, on_gpu: bool, local_ranks: int = 1) -> int:
    """Return the default number of decoding workers per rank: its share of the cores.

    Args:
        on_gpu: the network runs on a GPU; on a CPU it shares the cores with decoding.
        local_ranks: number of ranks on this machine.
    """
    cores = max(1, usable_cores() // local_ranks)
    return cores if on_gpu else max(1, cores // 2)


def usable_memory() -> int:
    """Return the bytes of memory this process may use, of machine or container; 0 if unknown."""
    limits = [limit for limit, _ in _memory_limits()]
    try:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        pass
    return min((limit for limit in limits if limit), default=0)


def free_memory() -> int:
    """Return the bytes available without swapping, including reclaimable caches; 0 if unknown."""
    free = [max(0, limit - used) for limit, used in _memory_limits()]
    available = _available(Path("/proc/meminfo"))
    return min(free if available is None else [*free, available], default=0)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of each control group that this process is in.

    File caches do not count as used: they are reclaimed before a limit is reached.
    """
    for folder, limit, used, caches in _memory_groups():
        most, now = _number(folder / limit), _number(folder / used)
        if most is None:  # "max"
            continue
        try:
            lines = (folder / "memory.stat").read_text().splitlines()
            held = sum(int(n) for name, _, n in (x.partition(" ") for x in lines) if name in caches)
        except (OSError, ValueError):
            held = 0
        yield most, max(0, (now or 0) - held)


def _memory_groups() -> Iterator[tuple[Path, str, str, tuple[str, ...]]]:
    """Yield the folders of this process's group and of its parents, with their file names."""
    try:
        memberships = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        memberships = []
    own = {"": "/", "memory": "/"}  # a container sees its own group as the root
    for line in memberships:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        own |= {name: path for name in controllers.split(",") if name in own}
    second = ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable"))
    first = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for root, path, names in (
        (_CGROUP, own[""], second),
        (_CGROUP / "memory", own["memory"], (*first, ("total_inactive_file", "total_active_file"))),
    ):
        below = Path(path.lstrip("/"))
        for folder in dict.fromkeys((root / below, *(root / each for each in below.parents), root)):
            yield (folder, *names)


def _available(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def environment_record() -> dict[str, Any]:
    """Return hardware, versions, commit and command line as plain values for JSON."""
    return {
        "command": sys.argv,
        "folder": os.getcwd(),
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_bytes": usable_memory(),
        "packages": {name: version(name) for name in _RECORDED_PACKAGES if version(name)},
        "dali": dali_version(),
        "commit": git_commit(),
        "variables": {key: os.environ[key] for key in _RECORDED_VARIABLES if key in os.environ},
        **_torch_record(),
    }


def version(package: str) -> str | None:
    """Return a distribution's version without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def dali_version() -> str | None:
    """Return the version of NVIDIA DALI, whose package is named after its CUDA release."""
    found = (version(f"nvidia-dali-cuda{release}") for release in ("130", "120", "110"))
    return next((name for name in found if name), None)


def git_commit() -> str | None:
    """Return the commit of fastrot's checkout, with "-dirty" if edited; None without a checkout."""
    checkout = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    command = [git, "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    # None for another user's checkout or an unresponsive disk: a record must not stop a run.
    return (ask_tool(command, seconds=10) or "").strip() or None


def _torch_record() -> dict[str, Any]:
    """Return what torch runs on, if this process has imported it: a record must not import it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    cuda = torch.cuda.is_available()
    cudnn = torch.backends.cudnn
    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version() if cuda and cudnn.is_available() else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda
        else [],
    }


def _quota() -> float | None:
    """Return the cores that the container may use (cgroup v2, then v1); None if unlimited."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        limit = _number(_CGROUP / "cpu/cpu.cfs_quota_us")
        span = _number(_CGROUP / "cpu/cpu.cfs_period_us")
        return limit / span if limit and span and limit > 0 else None
    return None if quota == "max" else int(quota) / int(period)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
