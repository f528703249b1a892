"""Steps of real trainers, and which of them others disturbed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastrot.benchmarks.scaling.trainer_steps import Load, TrainerError, Trainers


def test_the_share_of_others_by_hand() -> None:
    load = Load()
    load.cores = {0, 1}
    # Two cores: from 0 to 1 all is ours; from 1 to 2 others have half a core of them.
    load.samples = [(0.0, 10.0, 5.0), (1.0, 12.0, 7.0), (2.0, 14.0, 8.5), (3.0, 16.0, 10.5)]
    assert load.foreign(0.2, 0.8) == 0
    assert load.foreign(1.1, 1.9) == pytest.approx(0.25)
    assert load.foreign(0.9, 1.1) == pytest.approx(0.125)  # both samples are touched
    assert load.foreign(2.5, 3.5) == 1.0  # nobody looked


def test_what_our_processes_do_is_ours_and_counted_once() -> None:
    busy = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(busy) as child:
        try:
            load, began = Load(), time.monotonic()
            while time.monotonic() < began + 30:
                load.sample()
                (_, all_before, before), (_, all_after, after) = load.samples[0], load.samples[-1]
                if after - before > 0.6:
                    break
                time.sleep(0.05)
            ours, every = after - before, all_after - all_before
            assert 0.6 < ours < time.monotonic() - began + 0.1  # one child, one core
            assert ours < every + 0.1
        finally:
            child.kill()


def test_a_trainer_that_fails_is_passed_on(tmp_path: Path) -> None:
    trainers = Trainers(["train.global_batch=0"])
    with pytest.raises(TrainerError, match=r"ended with 64.*global_batch=0"):
        trainers.run(tmp_path, recipe="digits", steps=10, deadline=60)
