"""Steps of real trainers, and how much processor time is their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastrot.benchmarks.common.process_tree import busy_seconds, cpu_seconds
from fastrot.benchmarks.common.trainers import TrainerError
from fastrot.benchmarks.scaling.trainer_steps import Trainers


def test_what_our_processes_do_is_ours_and_counted_once() -> None:
    busy = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(busy) as child:
        try:
            cores, began = os.sched_getaffinity(0), time.monotonic()
            all_before, before = busy_seconds(cores), cpu_seconds(os.getpid())
            ours = 0.0
            while ours <= 0.6 and time.monotonic() < began + 600:
                time.sleep(0.05)
                ours = cpu_seconds(os.getpid()) - before
            every = busy_seconds(cores) - all_before
            assert 0.6 < ours < time.monotonic() - began + 0.1  # one child, one core
            assert ours < every + 0.1
        finally:
            child.kill()


def test_a_trainer_that_fails_is_passed_on(tmp_path: Path) -> None:
    trainers = Trainers(["train.global_batch=0"])
    with pytest.raises(TrainerError, match=r"ended with 64.*global_batch=0"):
        trainers.run(tmp_path, recipe="digits", steps=10, deadline=60)


def test_trainers_that_take_too_long_are_ended(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"too few steps in 0\.1 s: "):
        Trainers([]).run(tmp_path, recipe="digits", steps=10, deadline=0.1)
