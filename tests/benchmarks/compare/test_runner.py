"""Competitors in processes of their own: fair rounds, and what becomes of those that fail."""

from __future__ import annotations

import io
import os
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from fastrot.benchmarks.common.harness import Countdown
from fastrot.benchmarks.compare.runner import (
    Competitor,
    CompetitorError,
    CompetitorResults,
    competitor_cores,
    run_comparison,
)
from fastrot.errors import UsageError

COMPETITORS = {
    "steady": """
        def endless():
            print("a library that talks")
            while True:
                time.sleep(job_seconds)
                yield Delivery(1)
        """,
    # Works ahead in a thread: four deliveries lie ready whenever nobody looked for a while.
    "ahead": """
        def endless():
            ready = queue.Queue(4)
            def work():
                while True:
                    time.sleep(job_seconds)
                    ready.put(Delivery(1))
            threading.Thread(target=work, daemon=True).start()
            while True:
                yield ready.get()
        """,
    # Two deliveries at a time, as from two processes: 1 image costs half the time.
    "pairs": """
        def endless():
            while True:
                time.sleep(2 * job_seconds)
                yield Delivery(1)
                yield Delivery(1)
        """,
    "own_clock": """
        def endless():
            while True:
                time.sleep(job_seconds)
                yield Delivery(1, seconds=job_seconds / 10)
        """,
    "bright": """
        def endless():
            while True:
                yield Delivery(2, torch.full((2, 4, 4, 3), 100, dtype=torch.uint8))
        """,
    "brighter": """
        def endless():
            while True:
                yield Delivery(2, torch.full((2, 4, 4, 3), 103, dtype=torch.uint8))
        """,
    "other": """
        def endless():
            while True:
                yield Delivery(2, torch.full((2, 4, 4, 3), 120, dtype=torch.uint8))
        """,
    "refuses": """
        def endless():
            raise BadDataError("no such animal")
            yield
        """,
    "breaks": """
        def endless():
            yield Delivery(1)
            raise KeyError("lost")
        """,
    "dies": """
        def endless():
            yield Delivery(1)
            sys.stderr.write("the last word\\n")
            sys.stderr.flush()
            os.kill(os.getpid(), 11)
            yield
        """,
    "forks": """
        def endless():
            subprocess.Popen(["sleep", "1000"], close_fds=True)
            while True:
                time.sleep(job_seconds)
                yield Delivery(1)
        """,
}
_STREAMS = {"ahead": "Stream(endless(), ahead=4)", "pairs": "Stream(endless(), group=2)"}
_STEP = 0.02


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, body in COMPETITORS.items():
        imports = "import os, queue, subprocess, sys, threading, time\n"
        imports += "import torch\n" if "torch" in body else ""
        imports += "from fastrot.benchmarks.compare.stream import Delivery, Stream\n"
        imports += "from fastrot.errors import BadDataError\n"
        stream = _STREAMS.get(name, "Stream(endless())")
        opening = "\ndef open_stream(job):\n    global job_seconds\n"
        opening += f"    job_seconds = job['step']\n    return {stream}\n"
        text = imports + textwrap.dedent(body) + opening
        (tmp_path / f"competitor_{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def compare(
    *names: str, rounds: int = 3, starts: int = 1, seconds: float = 0.3
) -> CompetitorResults:
    cores = sorted(os.sched_getaffinity(0))
    return run_comparison(
        [Competitor(name, f"competitor_{name}", {"step": _STEP}) for name in names],
        cores=cores,
        starts=starts,
        rounds=rounds,
        seconds=seconds,
        countdown=Countdown(1, console=None),
    )


def test_rates_are_those_of_the_competitors(modules: Path) -> None:
    outcome = compare("steady", "pairs", "own_clock")
    rates = {name: sorted(each.rates())[1] for name, each in outcome.measured.items()}
    assert outcome.left_out == {}
    assert rates["steady"] == pytest.approx(1 / _STEP, rel=0.3)
    assert rates["pairs"] == pytest.approx(1 / _STEP, rel=0.3)
    assert rates["own_clock"] == pytest.approx(10 / _STEP, rel=0.01)


def test_what_was_made_before_a_turn_is_not_counted(modules: Path) -> None:
    outcome = compare("ahead", seconds=0.2)
    # Four of some ten deliveries would be gifts: every rate would be 1.4 times as high. Of three
    # rounds the lowest counts: other work on the machine can only disturb some of them.
    assert min(outcome.measured["ahead"].rates()) < 1.2 / _STEP


def test_a_start_is_a_fresh_process(modules: Path) -> None:
    (each,) = compare("steady", rounds=1, starts=3).measured.values()
    assert len(each.starts) == 3 and len(each.rounds) == 1
    for start in each.starts:
        assert start["first_seconds"] >= _STEP
        assert start["process_seconds"] > start["import_seconds"] + start["first_seconds"]
        assert start["levels"] is None
    assert each.rounds[0]["peak_bytes"] > 5e6
    assert each.rounds[0]["cpu_seconds"] < 0.2


def test_whoever_fails_is_left_out_with_the_reason(modules: Path) -> None:
    outcome = compare("steady", "refuses", "breaks", "dies", "nowhere")
    assert list(outcome.measured) == ["steady"]
    assert len(outcome.measured["steady"].rounds) == 3
    assert outcome.left_out == {
        "refuses": "no such animal",
        "breaks": "KeyError: 'lost'",
        "dies": "died with SIGSEGV: the last word",
        "nowhere": "ModuleNotFoundError: No module named 'competitor_nowhere'",
    }


@pytest.mark.parametrize(("name", "code"), [("refuses", 65), ("breaks", 70), ("dies", 70)])
def test_without_its_subject_there_is_no_comparison(modules: Path, name: str, code: int) -> None:
    with pytest.raises(CompetitorError, match=f"^{name}: ") as raised:
        compare(name, "steady")
    assert raised.value.exit_code == code


@pytest.mark.slow
def test_other_pixels_are_other_work(modules: Path) -> None:
    outcome = compare("bright", "brighter", "other", rounds=1, seconds=0.01)
    assert list(outcome.measured) == ["bright", "brighter"]
    assert "differs by 20 levels" in outcome.left_out["other"]


def test_no_process_is_left_behind(modules: Path) -> None:
    compare("forks", rounds=1, seconds=0.05)
    with pytest.raises(CompetitorError):
        compare("breaks", rounds=1)
    # Ours are sessions of their own: find them by the module that they run.
    running = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(modules).encode() in path.read_bytes() and path.parent.name != str(os.getpid()):
                running.append((path.parent / "cmdline").read_bytes())
        except OSError:
            continue
    assert running == []


def test_steps_and_who_is_left_out_are_said(modules: Path) -> None:
    text = io.StringIO()
    competitors = [
        Competitor(name, f"competitor_{name}", {"step": 0.001}) for name in ("steady", "refuses")
    ]
    run_comparison(
        competitors,
        cores=sorted(os.sched_getaffinity(0)),
        starts=1,
        rounds=2,
        seconds=0.01,
        countdown=Countdown(6, console=Console(file=text)),
    )
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("[1/6] steady: first delivery after 0.")
    assert lines[1] == "left out: refuses: no such animal"
    assert lines[-1].startswith("[3/3] round 2 steady: ") and lines[-1].endswith("left 0 s")


def test_more_cores_than_there_are_are_refused() -> None:
    assert len(competitor_cores(1)) == 1
    for workers in (0, 10**6):
        with pytest.raises(UsageError, match="usable cores"):
            competitor_cores(workers)
