"""Neither a reader that leaves early nor a terminal without UTF-8 is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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


@pytest.mark.parametrize(
    ("encoding", "commands"),
    [
        ("latin-1", ["prepare photos x.beton", "inspect x.beton", "eval --help"]),
        ("ascii", ["prepare photos x.beton", "inspect x.beton", "prepare nowhere\u6771 y.beton"]),
        ("utf-8", ["prepare photos x.beton"]),
    ],
)
def test_what_an_encoding_lacks_is_escaped(
    encoding: str, commands: list[str], tmp_path: Path
) -> None:
    photo = tmp_path / "photos" / "\u6771\u4eac" / "\u03b1.jpg"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(photo)
    (photo.parent / "\u03b2.txt").touch()
    os.rename(os.fsencode(photo), os.fsencode(photo.parent) + b"/\xe9.jpg")  # in no encoding
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "fastrot", *command.split()],
            cwd=tmp_path,
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == (64 if "nowhere" in command else 0), done.stderr
        if command.startswith("inspect"):
            assert "\u6771\u4eac".encode(encoding, "backslashreplace") in done.stdout
