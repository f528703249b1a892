from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fastrot.distributed.slurm import parse_slurm_options
from fastrot.distributed.slurm_jobs import SlurmTask
from fastrot.errors import UsageError
from fastrot.runs import slurm_job
from fastrot.runs.slurm_job import made_no_progress, saved_until_now, submit_command
from tests.program import poll


@pytest.mark.parametrize(
    ("starts", "now", "stuck"),
    [
        ([], 0, False),
        ([0], 0, False),  # one start alone may have been unlucky
        ([0, 0], 0, True),
        ([0, 0], 5, False),
        ([0, 5], 5, False),
        ([0, 5, 5], 5, True),
        ([5, 5, 9], 9, False),
    ],
)
def test_two_starts_in_a_row_without_a_step(starts: list[int], now: int, stuck: bool) -> None:
    assert made_no_progress(starts, now) is stuck


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch here"):
        submit_command(
            ["train"], tmp_path / "run", nodes=1, gpus=1, settings=parse_slurm_options([])
        )
    assert list(tmp_path.iterdir()) == []


def test_what_an_evaluation_has_saved(tmp_path: Path) -> None:
    """Locks and logs, which every start writes, are no progress."""
    assert saved_until_now(tmp_path / "none", trains=False) == 0
    for name in ("a/training/run.lock", "a/training/metrics.jsonl", "cache/c/run.lock", "log"):
        write(tmp_path / name)
    assert saved_until_now(tmp_path, trains=False) == 0
    names = ("cache/c/plan.json", "a/parts-1234/linear.safetensors", "b/parts/scores.json")
    for seconds, name in enumerate(names, 1):
        os.utime(write(tmp_path / name), (seconds, seconds))
        assert saved_until_now(tmp_path, trains=False) == seconds * 10**9
    (tmp_path / "a/training/checkpoints/step-00000003").mkdir(parents=True)
    assert saved_until_now(tmp_path, trains=False) > 10**18


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


WAITS = "import os, time; open(os.environ['BEGUN'], 'w').close(); time.sleep(300)"
TASK = SlurmTask("12", "12", 0, 0, 0, 1, 0, 1, "here")


def test_an_evaluation_is_requeued_until_it_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that waits stands for the evaluation; Slurm's warning ends it."""
    begun, commands, requeued = tmp_path / "begun", list[list[str]](), list[str]()
    monkeypatch.setenv("BEGUN", str(begun))
    out, folder = tmp_path / "out", tmp_path / "out.slurm"
    folder.mkdir()

    def command(words: list[str]) -> list[str]:
        commands.append(words)
        return [sys.executable, "-S", "-c", WAITS]

    def requeue(task: SlurmTask) -> None:
        requeued.append(task.requeue_id)
        os.kill(os.getpid(), signal.SIGTERM)  # as Slurm ends the start

    def warn() -> None:
        poll(begun.exists, "it has begun")
        begun.unlink()
        os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(slurm_job, "fastrot_command", command)
    monkeypatch.setattr(slurm_job, "requeue", requeue)
    codes = []
    for start in range(3):
        monkeypatch.setattr(slurm_job, "slurm_task", lambda n=start: replace(TASK, restarts=n))
        if start == 1:
            write(out / "a" / "parts" / "identity.json")
        warner = threading.Thread(target=warn)
        warner.start()
        with pytest.raises(SystemExit) as left:
            slurm_job.run_task(["eval", "knn", "w"], str(out), str(folder))
        warner.join()
        codes.append(left.value.code)
    assert commands == [["eval", "knn", "w", "--out", str(out)]] * 3
    assert codes == [75, 75, 70] and requeued == ["12", "12"]
    assert "two starts in a row saved nothing" in capsys.readouterr().out
    assert not (out / "status.json").exists()
