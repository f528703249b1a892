"""The server that starts programs, and a small run to do things to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastrot.data.digits import write_digits
from fastrot.runs.checkpoint import newest_checkpoint
from tests.chaos.calls import CALLS, changes
from tests.chaos.photos import Photos
from tests.program import Ended, Server, need_strace, pairs, shared_server


class TinyRun:
    """A run of a ResNet-18 of width 8 on the embedded digits, 0.1 s a step.

    Attributes:
        server: starts it.
        data: the training images, a ``.beton`` file.
        base: its run folder after two steps, with checkpoints of steps 0, 1 and 2.
        end: the same after four, never disturbed.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.data = write_digits(folder / "data")[0]
        self.base, self.end = folder / "base", folder / "end"
        done = server.run(*self.train(self.base, *pairs("train.max_steps=2")))
        assert done.code == 0, done.text
        shutil.copytree(self.base, self.end)
        done = server.run(*self.resume(self.end))
        assert done.code == 0, done.text

    def train(self, out: Path, *arguments: str) -> list[str]:
        """Arguments that begin a run; recipe and data may be given others."""
        usual = {"-c": "digits", "--data": str(self.data)}
        known = [word for option in usual.items() if option[0] not in arguments for word in option]
        return ["train", *known, "--out", str(out), *SMALL, *arguments]

    def resume(self, out: Path, *arguments: str) -> list[str]:
        """Arguments that take a copy of ``base`` on to step 4."""
        return self.train(out, "--resume", *pairs("train.max_steps=4"), *arguments)

    def copy(self, out: Path) -> Path:
        """A copy of ``base``."""
        return Path(shutil.copytree(self.base, out))

    def newest(self, out: Path) -> int:
        """Step of the newest checkpoint that verifies; -1 if none does."""
        run_id = json.loads((self.base / "status.json").read_text())["run_id"]
        found = newest_checkpoint(out / "checkpoints", run_id)
        return -1 if found is None else found.step

    def finish(self, out: Path) -> Ended:
        """Resume without any cleaning up, and hold that the end is that of ``end``."""
        done = self.server.run(*self.resume(out))
        assert done.code == 0, done.text
        self.assert_same_end(out)
        return done

    def assert_same_end(self, out: Path) -> None:
        ours, theirs = final_tensors(out), final_tensors(self.end)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        assert (out / "samples.jsonl").read_bytes() == (self.end / "samples.jsonl").read_bytes()
        assert leftovers(out) == []


SMALL = pairs(
    *("model.width=8", "train.threads=1", "sinks.tensorboard=false", "train.sample_log=ids"),
    *("data.val=null", "data.workers=0", "train.checkpoint_steps=1", "train.keep_checkpoints=2"),
)


def final_tensors(out: Path, step: int = 4) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:08d}" / "tensors.safetensors")


def leftovers(folder: Path) -> list[str]:
    """Names of temporary files and locks that are still there."""
    found = [path.name for path in folder.rglob("*") if ".tmp" in path.name]
    found += [path.name for path in folder.rglob("*.probe")]
    return found + [path.name for path in folder.rglob("run.lock")]


@pytest.fixture(scope="session")
def server() -> Server:
    """Starts fastrot in 20 ms."""
    return shared_server()


@pytest.fixture(scope="session")
def tiny(server: Server, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A small run to do things to."""
    return TinyRun(server, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def photos(
    server: Server, tmp_path_factory: pytest.TempPathFactory, test_data: Callable[[str], Path]
) -> Photos:
    """64 photos, as a folder and as a .beton."""
    return Photos(test_data("imagenette-128"), tmp_path_factory.mktemp("photos"), server)


@pytest.fixture(scope="session")
def points(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """Calls that change the disk, of a resume from step 2 to 4, from the lock to the last status.

    Each is a name, and its number among those of this name.
    """
    need_strace()
    out = tiny.copy(tmp_path_factory.mktemp("points") / "run")
    done = tiny.server.run(*tiny.resume(out), strace=["-e", f"trace={','.join(CALLS)}"])
    assert done.code == 0, done.text
    tiny.assert_same_end(out)
    found = changes(done.trace)
    assert len(found) > 80 and len(set(found)) == len(found), done.trace
    return found
