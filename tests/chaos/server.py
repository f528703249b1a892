"""Starts fastrot again and again without importing torch each time: a fork for each start.

Reads one JSON object a line from standard input and answers with one. ``start`` forks a child
that runs the command line as ``python -m fastrot`` does (or a function named ``module:function``),
in a session of its own; ``wait`` waits for its end and says when it was. Everything else about
the child is real: its signals, limits, files and exit code.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback

import torch
import torch._dynamo  # imported late by the first custom operation: once here, not in every fork

import tests.chaos.children  # noqa: F401
from fastrot.cli.app import main

CLONE_NEWNS = 0x00020000


def start(request: dict) -> dict:
    pid = os.fork()
    if pid == 0:
        code = 70
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
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if request.get("namespace"):  # mounts that only the child's namespace has
        descriptor = os.open(request["namespace"], os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)
    os.environ.update(request.get("environment", {}))
    os.chdir(request["folder"])
    for name, value in request.get("limits", {}).items():
        if name == "AS_MORE":  # than the program has now
            pages = int(open("/proc/self/statm").read().split()[0])
            name, value = "AS", pages * resource.getpagesize() + value
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if request.get("stopped"):
        os.kill(os.getpid(), signal.SIGSTOP)  # until a tracer is attached and wakes it
    try:
        if ":" in request["arguments"][0]:
            module, _, function = request["arguments"][0].partition(":")
            getattr(importlib.import_module(module), function)(*request["arguments"][1:])
        else:
            sys.argv = ["fastrot", *request["arguments"]]
            main(request["arguments"])
    except SystemExit as leave:
        # What the interpreter does at its end, in its order: finalizers of multiprocessing.
        importlib.import_module("multiprocessing.util")._exit_function()
        return leave.code if isinstance(leave.code, int) else int(bool(leave.code))
    return 0


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
