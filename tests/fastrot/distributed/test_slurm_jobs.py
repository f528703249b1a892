from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastrot.distributed.slurm_jobs import (
    JobState,
    describe_code,
    first_host,
    job_states,
    parse_duration,
    requeue,
    slurm_task,
)
from fastrot.errors import RankLostError


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that answer as Slurm's do; its own come first on the path."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("squeue", "scontrol", "sacct"):
        program(
            tmp_path, name, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
        )
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)


def test_what_the_controller_knows(answers: Path) -> None:
    program(
        answers,
        "squeue",
        "echo '7_0|RUNNING|None'; echo '7_1|PENDING|Priority'; echo '7_2|FAILED|X'",
    )
    program(answers, "scontrol", "echo 'JobId=9 JobState=FAILED ExitCode=0:9 Partition=a'")
    states = job_states(["7_0", "7_1", "7_2"])
    assert states["7_0"] == JobState("RUNNING") and states["7_0"].lives
    assert states["7_1"] == JobState("PENDING", "Priority") and states["7_1"].lives
    assert states["7_2"].code == -9 and not states["7_2"].lives
    assert states["7_2"].reason == "Slurm's state FAILED (killed by SIGKILL)"


def test_what_only_the_accounts_know(answers: Path) -> None:
    program(answers, "sacct", "echo '7_0|CANCELLED by 1000|0:0'; echo '7_1|TIMEOUT|0:1'")
    states = job_states(["7_0", "7_1", "7_2"])
    assert set(states) == {"7_0", "7_1"}
    assert "cancelled" in states["7_0"].reason and "over its time limit" in states["7_1"].reason


def test_the_shells_word_for_a_signal(answers: Path) -> None:
    program(answers, "squeue", "echo '7|FAILED|NonZeroExitCode'")
    for said, code in (("137:0", -9), ("75:0", 75), ("0:0", 0), ("0:15", -15)):
        program(answers, "scontrol", f"echo 'JobId=7 ExitCode={said} x'")
        assert job_states(["7"])["7"].code == code


def test_nothing_is_asked_about_nothing(answers: Path) -> None:
    assert job_states([]) == {} and job_states(["5"]) == {}


def test_a_busy_controller_is_asked_again(answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrot.distributed.slurm_jobs._AGAIN_SECONDS", 0.05)
    busy = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    asked = answers / "asked"
    program(
        answers,
        "squeue",
        f"echo x >> {asked}; [ $(wc -l < {asked}) -ge 3 ] || {{ {busy}; }}; echo '7|RUNNING|None'",
    )
    assert job_states(["7"])["7"].lives
    assert asked.read_text().count("x") == 3
    monkeypatch.setattr("fastrot.distributed.slurm_jobs._PATIENCE_SECONDS", 0.2)
    program(answers, "squeue", busy)
    with pytest.raises(RankLostError, match="Unable to contact slurm controller"):
        job_states(["7"])


def test_a_task_of_an_array() -> None:
    task = slurm_task(
        {
            "SLURM_JOB_ID": "12",
            "SLURM_ARRAY_JOB_ID": "10",
            "SLURM_ARRAY_TASK_ID": "2",
            "SLURM_RESTART_COUNT": "3",
            "SLURM_PROCID": "5",
            "SLURM_NTASKS": "8",
            "SLURM_LOCALID": "1",
            "SLURM_NODEID": "1",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "gpu[07,09]",
        }
    )
    assert task is not None
    assert (task.job, task.requeue_id, task.restarts) == ("10_2", "12", 3)
    assert (task.task, task.tasks, task.local_task, task.node, task.nodes) == (5, 8, 1, 1, 2)
    assert task.first_host == "gpu07" and 20_000 <= task.port < 32_000
    assert slurm_task({}) is None


@pytest.mark.parametrize(
    ("hosts", "first"), [("n1", "n1"), ("n[1-4]", "n1"), ("a-b[03,05-6],c", "a-b03"), ("x,y", "x")]
)
def test_the_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:31", 31), ("12:00", 720), ("1:00:00", 3600), ("2-00:00:01", 172_801), ("INVALID", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def test_codes() -> None:
    assert describe_code(3) == "exit code 3" and describe_code(-15) == "killed by SIGTERM"
    assert describe_code(-200) == "killed by signal 200"


def test_a_requeue_that_is_refused(answers: Path) -> None:
    task = slurm_task({"SLURM_JOB_ID": "4"})
    assert task is not None
    program(answers, "scontrol", "echo 'Requested operation is disabled' >&2; exit 1")
    assert requeue(task) == "Requested operation is disabled"
    program(answers, "scontrol", 'test "$*" = "requeue 4"')
    assert requeue(task) is None
