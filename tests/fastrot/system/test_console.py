"""A reader that leaves early is no failure."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PRINTS = {
    "print": "print('a line')",
    "rich": "from rich.console import Console; Console().print('a line')",
    "nothing": "pass",
}


@pytest.mark.parametrize("how", PRINTS)
@pytest.mark.parametrize("lines", [1, 20_000])  # less and more than the buffer of the stream
def test_a_closed_pipe_is_quiet(how: str, lines: int) -> None:
    code = (
        "from fastrot.system.console import to_a_reader\n"
        f"with to_a_reader():\n    for _ in range({lines}): {PRINTS[how]}\n"
        "raise SystemExit(65)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (65, b"")


def test_an_error_inside_is_not_swallowed() -> None:
    code = (
        "from fastrot.system.console import to_a_reader\nwith to_a_reader(): raise ValueError('x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "ValueError: x" in done.stderr
