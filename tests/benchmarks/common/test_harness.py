"""Medians, ratios, records, and what a tree of processes has used."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from fastrot.benchmarks.common import process_tree
from fastrot.benchmarks.common.harness import (
    Countdown,
    check_outputs,
    check_positive,
    machine_record,
    ratios,
    rotated,
    spread,
    write_json,
)
from fastrot.errors import UsageError
from fastrot.system.jsonl import append_json_lines


def test_a_ratio_is_taken_within_each_round() -> None:
    # A machine twice as slow in the second round: the ratio of the medians would be 2.25.
    found = ratios([300, 100, 300, 150], [100, 50, 150, 50])
    assert found == (2.5, 2.0, 3.0, 4)
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_a_spread_keeps_the_extremes() -> None:
    assert spread([3, 1, 2]) == (2, 1, 3, 3)
    assert spread([1 / 3]).to_json() == {
        "median": 0.33333,
        "low": 0.33333,
        "high": 0.33333,
        "repeats": 1,
    }


def test_each_competitor_goes_first_once_in_a_cycle() -> None:
    orders = [rotated(["a", "b", "c"], number) for number in range(4)]
    assert [order[0] for order in orders] == ["a", "b", "c", "a"]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert rotated([], 3) == []


def test_the_countdown_says_how_long_the_rest_takes() -> None:
    text = io.StringIO()
    countdown = Countdown(4, console=Console(file=text))
    time.sleep(0.6)
    countdown.step("one")
    countdown.skip(2)
    countdown.step("two")
    first, second = text.getvalue().splitlines()
    left = re.fullmatch(r"\[1/4\] one  left (\d+) s", first)
    assert left is not None and 2 <= int(left[1]) <= 20  # three times what the first one took
    assert second == "[2/2] two  left 0 s"


def test_the_record_names_the_machine_but_not_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["bench", "--data", "/home/me/my data", "--out=/tmp/x.json", "--rows", "here/a", "a=b"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fastrot", *words])
    record = machine_record()
    assert record["command"] == "fastrot bench --data 'my data' --out=x.json --rows here/a a=b"
    assert record["cores"] >= 1 and record["processor"] and record["libjpeg_turbo"]
    assert set(record["packages"]) >= {"torch", "torchvision", "pillow"}
    assert len(record["date"]) == 10
    assert not {"host", "folder"} & set(record)
    json.dumps(record)


def test_results_are_appended_and_objects_replaced(tmp_path: Path) -> None:
    lines, single = tmp_path / "results.jsonl", tmp_path / "one.json"
    append_json_lines(lines, [{"point": "a"}, {"point": "b"}])
    append_json_lines(lines, [{"point": "c"}])
    assert [json.loads(line)["point"] for line in lines.read_text().splitlines()] == ["a", "b", "c"]
    write_json(single, {"old": 1})
    write_json(single, {"new": 2})
    assert json.loads(single.read_text()) == {"new": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "results.jsonl"]


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    check_outputs(None, tmp_path / "out.json")
    for path in (tmp_path, tmp_path / "none" / "out.json"):
        with pytest.raises(UsageError, match="folder that exists"):
            check_outputs(path)
    with pytest.raises(UsageError, match="its folder is not writable"):
        check_outputs(Path("/proc/out.json"))


@pytest.mark.parametrize("number", [0, -1.0, float("nan"), float("inf")])
def test_what_is_no_positive_number_is_named(number: float) -> None:
    check_positive(seconds=0.5, batch=None)
    with pytest.raises(UsageError, match=f"--parity-steps={number} must be more than 0"):
        check_positive(seconds=1, parity_steps=number)


# --- processes ------------------------------------------------------------------------------

_BURN = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"


def test_time_of_a_living_grandchild_counts() -> None:
    code = f"import os, time\nif os.fork() == 0:\n exec({_BURN!r}); print('done', flush=True)"
    code += "\ntime.sleep(60)"
    before = process_tree.cpu_seconds(os.getpid())
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        used = process_tree.cpu_seconds(process.pid)
        grown = process_tree.cpu_seconds(os.getpid()) - before
        for child in process_tree._tree(process.pid)[::-1]:
            os.kill(child, 9)
    assert 0.5 <= used < 2
    assert grown >= 0.5


def test_time_of_an_ended_child_counts() -> None:
    before = process_tree.cpu_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", _BURN], check=True)
    assert process_tree.cpu_seconds(os.getpid()) - before >= 0.5


def test_busy_cores_are_seen() -> None:
    cores = os.sched_getaffinity(0)
    before = process_tree.busy_seconds(cores)
    subprocess.run([sys.executable, "-c", _BURN], check=True)
    assert process_tree.busy_seconds(cores) - before >= 0.4
    assert process_tree.busy_seconds([]) == 0


def test_memory_grows_with_what_is_touched() -> None:
    code = "import sys; print(1, flush=True); sys.stdin.readline(); x = b'x' * 2**26;"
    code += "print(2, flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        before = process_tree.memory(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        after = process_tree.memory(process.pid)
        process.stdin.close()
    assert 0.9 * 2**26 < after.total - before.total < 1.2 * 2**26
    assert after.peak - before.peak > 0.9 * 2**26
    assert after.file_pages <= after.total


def test_a_process_that_has_gone_has_used_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert process_tree.cpu_seconds(process.pid) == 0
    assert process_tree.memory(process.pid) == (0, 0, 0)
