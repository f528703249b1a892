"""Loaders and converters of ``fastrot bench loader`` by name; importing this loads none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from fastrot.benchmarks.compare.runner import Competitor
from fastrot.benchmarks.loader.converters import ConversionJob
from fastrot.benchmarks.loader.readers.job import LoaderJob
from fastrot.errors import UsageError


@dataclass(frozen=True)
class _Kind:
    """A competitor's module in ``readers``, its additions to the job, and the package it needs."""

    module: str
    job: Mapping[str, Any] = field(default_factory=dict)
    package: str | None = None


LOADERS = ("native", "ffcv", "dali", "reference")
"""fastrot's loaders; each can be the subject."""

BASELINES = {
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
"""Baselines: other loaders on their own, variants of fastrot's loaders, and fastrot's loaders that
use others."""

GPU_BASELINES = {
    "dali-gpu": _Kind("own", {"loader": "dali", "device": "cuda"}, "nvidia.dali"),
    "torchvision-gpu": _Kind("torchvision_gpu"),
    "host_to_device": _Kind("host_to_device"),
}
"""Added on a machine with an NVIDIA GPU."""

DEFAULT_BASELINES = ("ffcv", "dali", "torchvision")

CONVERTER_BASELINES = ("ffcv", "limit", "file_copy")
"""Baselines of ``prepare``, except ``file_copy``, which is the baseline of ``prepare --copy``."""


def find_competitors(
    job: LoaderJob, baselines: tuple[str, ...], *, gpu: bool
) -> tuple[list[Competitor], dict[str, str]]:
    """Return the competitors and why others are missing; the decode limit is always included.

    The subject is first.

    Raises:
        UsageError: a loader or a baseline is unknown.
    """
    if job.loader not in LOADERS:
        raise UsageError(f"unknown --loader={job.loader!r}; choose {', '.join(LOADERS)}")
    known = {**BASELINES, **(GPU_BASELINES if gpu else {})}
    for name in baselines:
        if name not in known:
            raise UsageError(f"--peers: unknown name {name!r}; choose {', '.join(known)}")
    names = list(dict.fromkeys([*baselines, "decode_limit", *(GPU_BASELINES if gpu else ())]))
    subject = f"fastrot-{job.loader}" if job.loader in names else job.loader
    found = [_competitor(subject, _Kind("own"), job)]
    missing = {}
    for name in names:
        kind = known[name]
        if kind.package is not None and not _installed(kind.package):
            missing[name] = f"the package {kind.package} is not installed"
            continue
        found.append(_competitor(name, kind, job))
    return found, missing


def find_converters(
    job: ConversionJob, baselines: tuple[str, ...]
) -> tuple[list[Competitor], dict[str, str], dict[str, str]]:
    """Return the converters, why others are missing, and what each baseline is compared with.

    The first converter is fastrot's.

    Args:
        job: what to convert, and how.
        baselines: names in ``CONVERTER_BASELINES``.
    """
    names = ["prepare"]
    missing: dict[str, str] = {}
    compared: dict[str, str] = {}
    for name in dict.fromkeys(baselines):
        if name == "ffcv" and not _installed(name):
            missing[name] = "the package ffcv is not installed"
            continue
        compared[name] = "prepare --copy" if name == "file_copy" else "prepare"
        names += [compared[name], name]
    module = "fastrot.benchmarks.loader.converters"
    found = [Competitor(name, module, asdict(replace(job, converter=name))) for name in
             dict.fromkeys(names)]  # fmt: skip
    return found, missing, compared


def _competitor(name: str, kind: _Kind, job: LoaderJob) -> Competitor:
    given = {**asdict(job), **kind.job}
    # build_loader imports its loader's engine on first use; that import is not part of loading.
    engine = (f"fastrot.data.loaders.{given['loader']}",) if kind.module == "own" else ()
    return Competitor(name, f"fastrot.benchmarks.loader.readers.{kind.module}", given, engine)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is absent
        return False
