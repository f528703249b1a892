"""Row 11: two programs that write the same."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from fastrot.data.beton.verify import verify
from fastrot.system.process_identity import ProcessIdentity
from tests.chaos.conftest import TinyRun, pairs
from tests.conftest import FaultLog
from tests.program import poll

HOLD = "tests.chaos.children:hold_run"


@pytest.mark.parametrize("turns", [4, pytest.param(50, marks=pytest.mark.chaos)])
def test_of_two_that_start_together_one_wins(
    turns: int, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    for turn in range(turns):
        folder, barrier = tmp_path / f"run{turn}", tmp_path / f"barrier{turn}"
        if turn % 2:  # the lock of a process that was killed lies there
            begun = tiny.server.start(HOLD, str(folder), str(barrier))
            barrier.touch()
            begun.until(lambda b=barrier: list(tmp_path.glob(f"{b.name}.won-*")), "it owns it")
            begun.signal(signal.SIGKILL)
            begun.end()
            assert (folder / "run.lock").exists()
            for path in tmp_path.glob(f"{barrier.name}*"):
                path.unlink()
        with fault_log(11) as trial:
            both = [tiny.server.start(HOLD, str(folder), str(barrier)) for _ in range(2)]
            barrier.touch()
            poll(lambda b=both: not all(program.runs for program in b), "one is refused")
            Path(f"{barrier}.over").touch()
            ended = [program.end() for program in both]
            assert sorted(each.code for each in ended) == [0, 78], [each.text for each in ended]
            refused = next(each for each in ended if each.code == 78)
            assert "is held by" in refused.line and " since " in refused.line
            trial.seconds = max(each.seconds for each in ended)
            assert json.loads((folder / "status.json").read_text())["step"] == 1
            assert sorted(path.name for path in folder.iterdir()) == ["status.json"]


def test_two_trainings(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    """The second one comes while the first one is at work: stopped, so that it is not over."""
    out = tiny.copy(tmp_path / "run")
    with fault_log(11) as trial:
        first = tiny.server.start(*tiny.resume(out))
        first.until((out / "run.lock").exists, "it holds the run")
        first.signal(signal.SIGSTOP)
        second = tiny.server.run(*tiny.resume(out))
        assert second.code == 78 and "is held by" in second.line, second.text
        first.signal(signal.SIGCONT)
        assert first.end().code == 0
        trial.seconds = second.seconds
        tiny.assert_same_end(out)


@pytest.mark.chaos
def test_two_conversions(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    from tests.chaos.test_planted import jpeg

    folder, out = tmp_path / "photos" / "a", tmp_path / "o.beton"
    folder.mkdir(parents=True)
    for i in range(40):
        (folder / f"{i}.jpg").write_bytes(jpeg())
    with fault_log(11) as trial:
        arguments = ["prepare", str(folder.parent), str(out), "--workers", "1"]
        both = [tiny.server.start(*arguments) for _ in range(2)]
        ended = [program.end() for program in both]
        codes = sorted(each.code for each in ended)
        assert codes in ([0, 78], [0, 64]), [each.text for each in ended]  # 64: it is there already
        trial.seconds = max(each.seconds for each in ended)
        assert verify(out, progress=False).exit_code == 0
        assert not any(each.orphans for each in ended)


@pytest.mark.chaos
def test_a_lock_of_before_a_reboot(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    """The pid in it may be anybody's by now; its heartbeat is old."""
    out = tiny.copy(tmp_path / "run")
    holder = vars(ProcessIdentity.of_this_process()) | {"pid": 1, "boot_id": "of-another-boot"}
    (out / "run.lock").write_text(json.dumps(holder))
    os.utime(out / "run.lock", (1e9, 1e9))
    with fault_log(11) as trial:
        ended = tiny.server.run(*tiny.resume(out), *pairs())
        assert ended.code == 0, ended.text
        trial.seconds = ended.seconds
        tiny.assert_same_end(out)
