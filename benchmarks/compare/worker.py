"""Process that runs one competitor; ``runner.py`` starts it and talks to it.

It reads one JSON object per line from standard input and answers each with one on standard output:
first the job, answered after the first delivery, then ``{"seconds": 3.0}`` for each round. It ends
when its input ends.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import IO, Any

from fastrot.benchmarks.common import process_tree
from fastrot.benchmarks.compare.stream import Delivery, Stream
from fastrot.errors import FastrotError

_IDLE_SECONDS = 0.1
_SETTLE_SECONDS = 10.0


def main() -> None:
    """Serve one competitor until the input ends."""
    answers = _keep_for_answers()
    try:
        request = json.loads(sys.stdin.readline() or "null")
        if request is not None:
            _serve(request, answers)
    except FastrotError as error:
        _say(answers, {"failed": str(error), "exit_code": error.exit_code})
    except Exception as error:  # any failure of a baseline is reported as such
        text = " ".join(str(error).split())
        _say(answers, {"failed": f"{type(error).__name__}: {text}", "exit_code": 70})


def _serve(request: dict[str, Any], answers: IO[str]) -> None:
    os.sched_setaffinity(0, request["cores"])
    started = time.perf_counter()
    module = [importlib.import_module(name) for name in request["imports"]][-1]
    imported = time.perf_counter()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # torch computes nothing here
    stream: Stream = module.open_stream(request["job"])
    first = next(stream.deliveries)
    _finish()
    ready = time.perf_counter()
    _say(
        answers,
        {
            "import_seconds": imported - started,
            "first_seconds": ready - imported,
            "levels": _levels(first),
            "notes": stream.notes,
        },
    )
    for line in sys.stdin:
        _say(answers, _run(stream, json.loads(line)["seconds"]))


def _run(stream: Stream, seconds: float) -> dict[str, Any]:
    """Consume deliveries for at least this many seconds; return what they cost."""
    for _ in range(stream.ahead + (stream.group if stream.ahead else 0)):
        next(stream.deliveries)
    _finish()
    me, cores = os.getpid(), os.sched_getaffinity(0)
    busy, storage = process_tree.busy_seconds(cores), process_tree.storage_bytes(me)
    cpu = process_tree.cpu_seconds(me)
    images, own_seconds, clock = 0, 0.0, True
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(stream.group):
            delivery = next(stream.deliveries)
            images += delivery.images
            if delivery.seconds is not None:
                clock, own_seconds = False, own_seconds + delivery.seconds
    _finish()
    elapsed = time.perf_counter() - started
    cpu = process_tree.cpu_seconds(me) - cpu
    busy = process_tree.busy_seconds(cores) - busy
    used = process_tree.memory(me)
    result = {
        "images": images,
        "seconds": elapsed if clock else own_seconds,
        "cpu_seconds": cpu,
        "foreign_cores": max(0.0, busy - cpu) / elapsed,
        "storage_bytes": process_tree.storage_bytes(me) - storage,
        "peak_bytes": max(used.total, used.peak),
        "steady_bytes": used.total,
        "file_page_bytes": used.file_pages,
    }
    _settle()
    return result


def _settle() -> None:
    """Wait until work done ahead is finished, before the next competitor is measured."""
    me, end = os.getpid(), time.monotonic() + _SETTLE_SECONDS
    before = process_tree.cpu_seconds(me)
    while time.monotonic() < end:
        time.sleep(_IDLE_SECONDS)
        now = process_tree.cpu_seconds(me)
        if now - before < _IDLE_SECONDS / 4:  # two ticks: measuring takes some time as well
            return
        before = now


def _finish() -> None:
    """Wait for the GPU, if this competitor uses one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _levels(delivery: Delivery) -> list[float] | None:
    """Return the mean level of each image, which shows whether competitors make the same crops."""
    if delivery.pixels is None:
        return None
    means: list[float] = delivery.pixels.flatten(1).float().mean(dim=1).tolist()
    return means


def _keep_for_answers() -> IO[str]:
    """Return standard output, kept for answers: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
