"""The contenders of ``fastrot bench loader`` by name. Importing this loads none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from fastrot.benchmarks.compare.runner import Entry
from fastrot.benchmarks.loader.readers.job import LoaderJob
from fastrot.errors import UsageError


@dataclass(frozen=True)
class _Kind:
    """Module in ``peers``, what it gets besides the job, the package it needs."""

    module: str
    job: Mapping[str, Any] = field(default_factory=dict)
    package: str | None = None


LOADERS = ("native", "ffcv", "dali", "reference")
"""Our loaders, which can be the subject."""

PEERS = {
    "ffcv": _Kind("ffcv", package="ffcv"),
    "dali": _Kind("dali", package="nvidia.dali"),
    "torchvision": _Kind("torchvision"),
    "torchvision-pillow": _Kind("torchvision", {"decoder": "pillow"}),
    "decode_limit": _Kind("decode_limit"),
    "native-unchecked": _Kind("own", {"loader": "native", "checksums": False}),
    "native-exact": _Kind("own", {"loader": "native", "exact": True}),
    "fastrot-native": _Kind("own", {"loader": "native"}),
    "fastrot-ffcv": _Kind("own", {"loader": "ffcv"}, "ffcv"),
    "fastrot-dali": _Kind("own", {"loader": "dali"}, "nvidia.dali"),
    "fastrot-reference": _Kind("own", {"loader": "reference"}),
}
"""What it can be compared with: the peers, bare; variants of ours; our loaders around peers."""

GPU_PEERS = {
    "dali-gpu": _Kind("own", {"loader": "dali", "device": "cuda"}, "nvidia.dali"),
    "torchvision-gpu": _Kind("torchvision_gpu"),
    "host_to_device": _Kind("host_to_device"),
}
"""Added where there is an NVIDIA GPU."""

DEFAULT_PEERS = ("ffcv", "dali", "torchvision")


def entries(
    job: LoaderJob, peers: tuple[str, ...], *, gpu: bool
) -> tuple[list[Entry], dict[str, str]]:
    """The contenders, the subject first and the decode limit always, and why others are not.

    Raises:
        UsageError: an unknown loader or peer, or one twice.
    """
    if job.loader not in LOADERS:
        raise UsageError(f"--loader={job.loader!r} is not known; choose {', '.join(LOADERS)}")
    known = {**PEERS, **(GPU_PEERS if gpu else {})}
    for name in peers:
        if name not in known:
            raise UsageError(f"--peers: {name!r} is not known; known: {', '.join(known)}")
    names = list(dict.fromkeys([*peers, "decode_limit", *(GPU_PEERS if gpu else ())]))
    subject = f"fastrot-{job.loader}" if job.loader in names else job.loader
    found = [_entry(subject, _Kind("own"), job)]
    missing = {}
    for name in names:
        kind = known[name]
        if kind.package is not None and not _installed(kind.package):
            missing[name] = f"the package {kind.package} is not installed"
            continue
        found.append(_entry(name, kind, job))
    return found, missing


def _entry(name: str, kind: _Kind, job: LoaderJob) -> Entry:
    given = {**asdict(job), **kind.job}
    # build_loader imports the engine of its loader only when asked to: that is no loading.
    engine = (f"fastrot.data.{given['loader']}",) if kind.module == "own" else ()
    return Entry(name, f"fastrot.benchmarks.loader.readers.{kind.module}", given, engine)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is absent
        return False
