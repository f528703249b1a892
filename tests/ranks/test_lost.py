"""A rank that is killed or stopped: the others name it and leave, and a restart resumes."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.chaos.listeners import listening
from tests.program import poll
from tests.ranks.faulty import BEGUN

STEPS = 20
SETTINGS = (
    *(f"train.max_steps={STEPS}", "train.global_batch=64", "train.checkpoint_steps=5"),
    "train.deadline_seconds=10",
)


@pytest.fixture(scope="module")
def undisturbed(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.ranks.conftest import Ranks

    run = Ranks(server, tmp_path_factory.mktemp("whole") / "run", settings=SETTINGS)
    run.end()
    return run


def assert_same_end(run: Any, undisturbed: Any) -> None:
    assert run.samples() == undisturbed.samples() and len(run.samples()) == STEPS
    ours, theirs = run.tensors(STEPS), undisturbed.tensors(STEPS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.chaos), 1])
def test_a_killed_rank_is_named_and_the_run_goes_on(
    train: Callable[..., Any], undisturbed: Any, fault_log: Any, victim: int
) -> None:
    with fault_log(15) as trial:
        run = train("run", settings=SETTINGS)
        run.reached(7)
        killed = run.ranks[victim].signal(signal.SIGKILL)
        codes = [69, 69]
        codes[victim] = -signal.SIGKILL
        ended = run.end(*codes)
        survivor = ended[1 - victim]
        trial.seconds = survivor.at - killed
        assert trial.seconds < 120
        assert f"rank {victim} (process {run.ranks[victim].pid}) was killed" in survivor.line
        assert "Traceback" not in survivor.text
        if victim == 1:
            assert run.status["exit_code"] == 69 and f"rank {victim}" in run.status["message"]
        resumed = train("run", "--resume", settings=SETTINGS)
        resumed.end()
        assert_same_end(resumed, undisturbed)


def test_a_stopped_rank_is_named_at_the_deadline(
    train: Callable[..., Any], undisturbed: Any, fault_log: Any
) -> None:
    with fault_log(16) as trial:
        run = train("run", settings=SETTINGS)
        run.reached(7)
        stopped = run.ranks[1].signal(signal.SIGSTOP)
        main = run.ranks[0].end()
        trial.seconds = main.at - stopped
        assert main.code == 69, main.text
        assert 5 < trial.seconds < 120
        assert f"rank 1 (process {run.ranks[1].pid}) is stopped" in main.line
        run.ranks[1].signal(signal.SIGCONT)  # it finds the others gone
        other = run.ranks[1].end()
        assert other.code == 69 and not other.orphans
        resumed = train("run", "--resume", settings=SETTINGS)
        resumed.end()
        assert_same_end(resumed, undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_a_launcher_restarts_all_ranks(
    launch: Callable[..., Any], undisturbed: Any, fault_log: Any, launcher: str
) -> None:
    with fault_log(15) as trial:
        resume = ("--resume",) if launcher == "torchrun" else ()
        run = launch("run", launcher, *resume, settings=SETTINGS, restarts=1)
        victim = run.rank(1)
        run.reached(7)
        os.kill(victim, signal.SIGKILL)
        began = time.time()
        run.rank(1, not_pid=victim)
        trial.seconds = time.time() - began
        words = run.end()
        assert f"rank 1 (process {victim}) was killed" in words
        if launcher == "own":
            assert "rank 1 was killed by SIGKILL; restarting all ranks" in words
        assert_same_end(run, undisturbed)


@pytest.mark.chaos
def test_our_launcher_ends_a_stopped_rank(
    launch: Callable[..., Any], undisturbed: Any, fault_log: Any
) -> None:
    with fault_log(16) as trial:
        run = launch("run", "own", settings=SETTINGS, restarts=1)
        victim = run.rank(1)
        run.reached(7)
        os.kill(victim, signal.SIGSTOP)
        began = time.time()
        run.rank(1, not_pid=victim)
        trial.seconds = time.time() - began
        assert f"rank 1 (process {victim}) is stopped" in run.end()
        assert_same_end(run, undisturbed)


@pytest.mark.parametrize(
    ("number", "rank", "step"),
    [(signal.SIGTERM, 0, 3), pytest.param(signal.SIGUSR2, 1, 11, marks=pytest.mark.chaos)],
)
def test_a_signal_to_one_rank_stops_both_after_the_same_step(
    train: Callable[..., Any],
    undisturbed: Any,
    fault_log: Any,
    number: signal.Signals,
    rank: int,
    step: int,
) -> None:
    with fault_log(3) as trial:
        run = train("run", settings=SETTINGS)
        run.reached(step)
        sent = run.ranks[rank].signal(number)
        main, other = run.end(75, 75)
        trial.seconds = max(main.at, other.at) - sent
        assert run.status["state"] == "preempted" and step <= run.status["step"] < STEPS
        assert f"after step {run.status['step']}" in main.text and not other.text
        resumed = train("run", "--resume", settings=SETTINGS)
        resumed.end()
        assert_same_end(resumed, undisturbed)


@pytest.mark.parametrize(("size", "rank"), [(1, 0), pytest.param(2, 1, marks=pytest.mark.chaos)])
def test_a_stop_does_not_wait_for_the_end_of_a_validation(
    train: Callable[..., Any], fault_log: Any, tmp_path: Path, size: int, rank: int
) -> None:
    settings = (*SETTINGS, "data.val=embedded:digits", "train.val_epochs=0.5")
    with fault_log(3) as trial:
        begun = tmp_path / "begun"
        run = train("run", size=size, settings=settings, environment={BEGUN: str(begun)},
                    program="tests.ranks.faulty:long_validation")  # fmt: skip
        poll(begun.exists, "a validation begins")
        sent = run.ranks[rank].signal(signal.SIGTERM)
        ended = run.end(*[75] * size)
        trial.seconds = max(each.at for each in ended) - sent
        step = run.status["step"]
        assert 0 < step and f"during the validation after step {step}" in ended[0].text
        assert run.validations == []
        resumed = train("run", "--resume", size=size, settings=settings)
        resumed.end()
        whole = train("whole", size=size, settings=settings)
        whole.end()
        assert resumed.validations == whole.validations and len(whole.validations) > 1
        assert_same_end(resumed, whole)


@pytest.mark.parametrize("how", [pytest.param("signal", marks=pytest.mark.chaos), "killed"])
def test_the_launcher_hands_a_signal_on_and_its_death_too(
    launch: Callable[..., Any], fault_log: Any, how: str
) -> None:
    with fault_log(3) as trial:
        run = launch("run", "own", settings=(*SETTINGS, "train.max_steps=100000"))
        run.reached(2)
        began = time.time()
        run.process.send_signal(signal.SIGUSR2 if how == "signal" else signal.SIGKILL)
        words = run.end(75 if how == "signal" else -signal.SIGKILL)
        poll(lambda: run.status["state"] == "preempted", "the ranks stop", 30)
        trial.seconds = time.time() - began
        assert run.status["exit_code"] == 75
        assert "Traceback" not in words


def test_a_rank_that_never_comes_is_named(train: Callable[..., Any], fault_log: Any) -> None:
    with fault_log(25) as trial:
        began = time.time()
        run = train("run", program="tests.ranks.faulty:impatient", size=3, present=(0, 2))
        main, other = run.end(69, 69)
        trial.seconds = main.at - began
        assert "waited 2 s for ranks 1 of 3" in main.text
        assert "Traceback" not in main.text + other.text


def test_a_wrong_address_is_named(server: Any, tmp_path: Any, fault_log: Any) -> None:
    from tests.ranks.conftest import arguments

    with fault_log(25) as trial, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        began = time.time()
        ended = server.run(
            "tests.ranks.faulty:impatient",
            *arguments(tmp_path / "run"),
            environment={"RANK": "1", "WORLD_SIZE": "2", **where},
        )
        trial.seconds = ended.at - began
        assert ended.code == 69, ended.text
        assert f"127.0.0.1:{where['MASTER_PORT']}" in ended.line
        assert "Traceback" not in ended.text


def test_nothing_listens_beyond_this_machine(train: Callable[..., Any], fault_log: Any) -> None:
    with fault_log(28):
        run = train("run", settings=SETTINGS)
        run.reached(3)
        found = [listening(rank.pid) for rank in run.ranks]
        assert all(found), "gloo's own sockets listen, on the loopback"
        for rank in run.ranks:
            rank.signal(signal.SIGTERM)
        run.end(75, 75)
        assert {address for addresses in found for address in addresses} == {"127.0.0.1"}
