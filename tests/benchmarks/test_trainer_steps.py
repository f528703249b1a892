"""Steps of real trainers, and which of them others disturbed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastrot.benchmarks.trainer_steps import Load, TrainerError, Trainers


def test_the_share_of_others_by_hand() -> None:
    load = Load()
    load.cores = {0, 1}
    # Two cores: from 0 to 1 all is ours; from 1 to 2 others have half a core of them.
    load.samples = [(0.0, 10.0, 5.0), (1.0, 12.0, 7.0), (2.0, 14.0, 8.5), (3.0, 16.0, 10.5)]
    assert load.foreign(0.2, 0.8) == 0
    assert load.foreign(1.1, 1.9) == pytest.approx(0.25)
    assert load.foreign(0.9, 1.1) == pytest.approx(0.125)  # both samples are touched
    assert load.foreign(2.5, 3.5) == 1.0  # nobody looked


def test_what_our_processes_do_is_not_foreign() -> None:
    """A child that works for 0.6 s is ours: others have at least that much less."""
    busy = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(busy) as child:
        try:
            ours, theirs = Load(), Load()
            until = time.monotonic() + 30
            while time.monotonic() < until:
                ours.sample([child.pid])
                theirs.sample([])
                time.sleep(0.02)
                (began, _, before), (ended, _, after) = ours.samples[0], ours.samples[-1]
                if after - before > 0.6:
                    break
            assert after - before > 0.6
            apart = theirs.foreign(began, theirs.samples[-1][0]) - ours.foreign(began, ended)
            assert apart > 0.3 * 0.6 / (len(ours.cores) * (ended - began))
        finally:
            child.kill()


def test_a_trainer_that_fails_is_passed_on(tmp_path: Path) -> None:
    trainers = Trainers(["train.global_batch=0"])
    with pytest.raises(TrainerError, match=r"ended with 64.*global_batch=0"):
        trainers.run(tmp_path, recipe="digits", steps=10, deadline=60)
