"""Kills a ``.beton`` writer at every one of its system calls that change a file.

``python kill_writer.py FOLDER SCENARIO`` forks a child for each call, which it does not survive,
and prints one line of JSON for each: what the folder shows afterwards. Between two calls nothing
changes, so before one is after the last. Runs as a process of its own, because forking a test
runner that has threads is unsafe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from fastrot.data.beton import BetonFile, BetonWriter, Field, Kind, manifest

FIELDS = [Field("image", Kind.IMAGE), Field("label", Kind.INT)]
CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "rename", "replace", "unlink")
SIDE = 500  # two images a page of 2 MiB

# name: (shade and number of images of the old file, of the new one, resumable).
# In "same structure" only the data of raw images tells the two files apart.
SCENARIOS = {
    "first": (None, (2, 3), False),
    "replace": ((1, 2), (2, 3), False),
    "same-structure": ((1, 3), (2, 3), False),
    "resumable": ((1, 2), (2, 5), True),
}


def write(path: Path, shade: int, count: int, *, journal: str | None, resume: bool = False) -> None:
    with BetonWriter(
        path, FIELDS, capacity=count, page_size=2**21, journal=journal, resume=resume
    ) as writer:
        for i in range(writer.last_position + 1, count):
            writer.add(np.full((SIDE, SIDE, 3), shade * 16 + i, np.uint8), i, position=i)
        writer.commit(class_names=[f"shade {shade}, {i}" for i in range(count)])


def state(path: Path) -> str:
    """Hash of what a user sees: pixels, labels and class names, all checked; or the error."""
    if not path.exists():
        return "absent"
    digest = hashlib.sha256()
    with BetonFile.open(path) as file:
        described = manifest.load(file)
        if described is None:
            return "without manifest"
        for sample in range(len(file)):
            payloads = file.payloads(sample)
            if file.checksum(sample, payloads) != described.checksums[sample]:
                return f"sample {sample} and manifest differ"
            digest.update(payloads["image"])
        digest.update(repr((file.ints("label").tolist(), described.class_names)).encode())
    return digest.hexdigest()


def kill_before(call: int) -> None:
    """Kill this process before its ``call``-th call from the opening of the temporary file on."""
    seen = 0
    writing = False

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def wrapped(*arguments, **options):
            nonlocal seen, writing
            # The lock has tests of its own; it is taken before the first of these.
            writing = writing or (name == "open" and ".tmp-" in str(arguments[0]))
            seen += writing
            if writing and seen == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(os, name, wrapped)

    for name in CALLS:
        wrap(name)


def forked(action) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def main(folder: Path, scenario: str) -> None:
    old, new, resumable = SCENARIOS[scenario]
    journal = "sources" if resumable else None
    template = folder / "template"
    template.mkdir()
    if old is not None:
        forked(lambda: write(template / "x.beton", *old, journal=None))
    killed, call = True, 0
    while killed:
        call += 1
        work = folder / str(call)
        shutil.copytree(template, work)
        path = work / "x.beton"

        def doomed(path: Path = path, call: int = call) -> None:
            kill_before(call)
            write(path, *new, journal=journal)

        def retry(path: Path = path) -> None:
            write(path, *new, journal=journal, resume=resumable)

        killed = os.WIFSIGNALED(forked(doomed))
        after = state(path)
        status = forked(retry)
        outcome = {
            "call": call,
            "killed": killed,
            "after": after,
            "retried": state(path) if status == 0 else f"failed with {status}",
            "bytes": hashlib.sha256(path.read_bytes()).hexdigest(),
            "files": sorted(entry.name for entry in work.iterdir()),
        }
        print(json.dumps(outcome), flush=True)
        shutil.rmtree(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
