"""Row 22: features of another model, a cut cache, an extraction that is killed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from fastrot.features.cache import FeatureCache
from tests.chaos.calls import CALLS, changes
from tests.chaos.conftest import TinyRun
from tests.chaos.photos import Photos
from tests.conftest import FaultLog
from tests.program import need_strace


def extract(tiny: TinyRun, photos: Photos, out: Path, step: int = 2) -> list[str]:
    checkpoint = tiny.base / "checkpoints" / f"step-{step:08d}"
    return ["extract", str(checkpoint), "--data", str(photos.folder), "--out", str(out)]


@pytest.fixture(scope="module")
def whole(tiny: TinyRun, photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "cache"
    done = tiny.server.run(*extract(tiny, photos, out))
    assert done.code == 0, done.text
    return out


def assert_same(out: Path, whole: Path) -> None:
    FeatureCache.open(out)
    for path in whole.glob("*.npy"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_a_cache_of_another_model(
    whole: Path, tiny: TinyRun, photos: Photos, tmp_path: Path, fault_log: FaultLog
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "cache"))
    with fault_log(22) as trial:
        ended = tiny.server.run(*extract(tiny, photos, out, step=1))
        trial.seconds = ended.seconds
        assert ended.code == 78, ended.text
        assert "Traceback" not in ended.text and "weights" in ended.line
        assert_same(out, whole)


@pytest.mark.parametrize(
    "name", ["labels.npy", pytest.param("manifest.json", marks=pytest.mark.chaos)]
)
def test_a_cut_cache(
    name: str, whole: Path, tiny: TinyRun, photos: Photos, tmp_path: Path, fault_log: FaultLog
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "cache"))
    os.truncate(out / name, (out / name).stat().st_size // 2)
    with fault_log(22) as trial:
        ended = tiny.server.run(*extract(tiny, photos, out))
        trial.seconds = ended.seconds
        trial.wrong = int(ended.code == 0)
        assert ended.code == 65 and "Traceback" not in ended.text, ended.text
        assert name in ended.line


@pytest.mark.chaos
def test_an_extraction_is_killed(
    whole: Path, tiny: TinyRun, photos: Photos, tmp_path: Path, fault_log: FaultLog
) -> None:
    """At its system calls: what is there is complete or not a cache, and the next start resumes."""
    need_strace()
    traced = tiny.server.run(
        *extract(tiny, photos, tmp_path / "traced"), strace=["-e", f"trace={','.join(CALLS)}"]
    )
    assert traced.code == 0, traced.text
    points = changes(traced.trace)[::4]  # each takes two seconds
    assert len(points) >= 2
    for call, count in points:
        out = tmp_path / f"{call}-{count}"
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={count}"]
        with fault_log(22) as trial:
            killed = tiny.server.run(*extract(tiny, photos, out), strace=inject)
            trial.seconds, trial.orphans = killed.injected, len(killed.orphans)
            assert killed.code == -signal.SIGKILL, killed.text
            if (out / "manifest.json").exists():
                assert_same(out, whole)
            again = tiny.server.run(*extract(tiny, photos, out))
            assert again.code == 0, f"{call} {count}: {again.text}"
            assert_same(out, whole)
            assert trial.orphans == 0
