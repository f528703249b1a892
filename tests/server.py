"""Starts Python programs without importing torch for each of them: a fork for each start.

Reads one JSON object per line from standard input and answers each with one. ``start`` forks a
child that does what an interpreter with these arguments would (``-m MODULE ...``,
``-c CODE ...``, ``FILE.py ...``) or calls a function named ``module:function``, in a session of its
own; ``wait`` waits for its end and says when it was. Everything else about the child is real: its
signals, limits, files and exit code.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import sys
import threading
import time
import traceback
import types

import torch

CLONE_NEWNS = 0x00020000

# What programs import late: once here, not in every fork.
PRELOADED = (
    *("torch._dynamo", "torchvision", "sklearn.datasets", "sklearn.svm", "xxhash", "PIL.Image"),
    *("fastrot.cli.app", "fastrot.training.run", "fastrot.evaluation.command"),
    *("fastrot.data.digits", "fastrot.data.loaders.native", "fastrot.data.prepare.convert"),
    *("fastrot.features.extract", "fastrot.report.run.make", "fastrot.weights.load"),
)


def start(request: dict) -> dict:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = become(request)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return {"pid": pid}


def become(request: dict) -> int:
    """Run the child's program and return its exit code."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, request["output"]), (2, request.get("errors"))):
        # Both to one file, in order, where only the first is given.
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if path else 1
        os.dup2(opened, descriptor)
        if path:
            os.close(opened)
    if request.get("namespace"):  # mounts that only the child's namespace has
        descriptor = os.open(request["namespace"], os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)
    if request.get("whole_environment"):
        os.environ.clear()
    os.environ.update(request.get("environment", {}))
    os.chdir(request["folder"])
    for name, value in request.get("limits", {}).items():
        if name == "AS_MORE":  # than the program has now
            pages = int(open("/proc/self/statm").read().split()[0])
            name, value = "AS", pages * resource.getpagesize() + value
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if "numpy" in sys.modules:  # or programs that draw without a seed would all draw the same
        sys.modules["numpy"].random.seed()
    if request.get("stopped"):
        os.kill(os.getpid(), signal.SIGSTOP)  # until a tracer is attached and wakes it
    code = 0
    try:
        run(request["arguments"])
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    # What the interpreter does at its end, in its order.
    threading._shutdown()
    atexit._run_exitfuncs()
    return code


def run(arguments: list[str]) -> None:
    first, *words = arguments
    if first == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv = ["-c", *words[1:]]
        exec(compile(words[0], "<string>", "exec"), main.__dict__)
    elif first.endswith(".py"):
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")
    else:
        module, _, function = first.partition(":")
        getattr(importlib.import_module(module), function)(*words)


def wait(request: dict) -> dict:
    """The exit status of a child and the time of its end; none if the deadline passed."""
    pid = request["pid"]
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], request["seconds"])[0]:
            return {"code": None, "at": 0.0}
        at = time.time()  # strace writes the time of day, too
    finally:
        os.close(descriptor)
    return {"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "at": at}


def serve() -> None:
    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or every child would copy these pages when it collects
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        reply = {"start": start, "wait": wait}[request["op"]](request)
        print(json.dumps(reply), file=answer, flush=True)


if __name__ == "__main__":
    serve()
    os._exit(0)  # libraries have nothing to put in order, and much to say at the end
