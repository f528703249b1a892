"""``fastrot extract`` from the command line, on one rank and on two."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrot.data.sampling.crops import Crop
from fastrot.data.sources.dataset import FolderDataset
from fastrot.features.cache import FeatureCache
from fastrot.features.extract import ExtractOptions, extract_features
from fastrot.features.spec import FeatureSpec
from fastrot.weights.load import load_backbone
from tests.program import run_python

FASTROT = [sys.executable, "-m", "fastrot"]
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4", "pool")


def call(command: list[str]) -> subprocess.CompletedProcess[str]:
    return run_python(command)


def extract(run: Path, data: Path, out: Path, *options: str) -> list[str]:
    return ["extract", str(run), "--data", str(data), "--out", str(out), *options]


def assert_same_bytes(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.glob("*.npy"))
    assert names == sorted(path.name for path in other.glob("*.npy")) and "labels.npy" in names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def many(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos enough for several batches of one image: 41, an odd number."""
    folder = tmp_path_factory.mktemp("many")
    shutil.copytree(photos, folder, dirs_exist_ok=True)
    for file in sorted(photos.rglob("*.jpg")):
        shutil.copy(file, folder / file.parent.name / f"again-{file.name}")
    shutil.copy(file, folder / file.parent.name / "once-more.jpg")
    return folder


@pytest.mark.slow
def test_one_command_makes_a_cache_and_the_next_finds_it(small_run, photos, tmp_path):
    out = tmp_path / "cache"
    first = call([*FASTROT, *extract(small_run, photos, out, "--json")])
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    cache = FeatureCache.open(out)
    assert report["samples"] == 20 and report["identity"] == cache.fingerprint
    assert tuple(cache.layers) == LAYERS and cache.fingerprint["crop"]["resize"] == 73
    assert report["bytes"] == {n: (out / f"{n}.npy").stat().st_size for n in LAYERS}
    assert report["made_by"]["images"] == 20
    samples, backbone = FolderDataset(photos), load_backbone(small_run)
    crop = Crop("center", 64, resize=73)
    torch.set_num_threads(1)
    spec = FeatureSpec.settle(backbone, samples, torch.device("cpu"), layers=LAYERS, crop=crop)
    here = extract_features(
        backbone, samples, tmp_path / "here", spec, ExtractOptions(progress=False)
    )
    assert here.fingerprint == cache.fingerprint
    assert_same_bytes(out, here.path)

    again = call([*FASTROT, *extract(small_run, photos, out)])
    assert again.returncode == 0 and "20 samples" in again.stdout
    other = call([*FASTROT, *extract(small_run, photos, out, "--random-init")])
    assert other.returncode == 78
    assert other.stderr.count("\n") == 1 and "weights: " in other.stderr
    larger = extract(small_run, photos, out, "--set", "features.resolution=96")
    other = call([*FASTROT, *larger])
    assert other.returncode == 78 and "crop.resize: 73 -> 110; crop.size: 64 -> 96" in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("crops", [pytest.param("0", marks=pytest.mark.chaos), "2"])
def test_two_ranks_give_the_bytes_of_one(crops, small_run, many, tmp_path):
    """Of the same number of threads each: more threads cut up convolutions in another way."""
    script = Path(__file__).with_name("rank_extract.py")
    options = [str(small_run), str(many), crops]
    one = call([sys.executable, str(script), str(tmp_path / "one"), *options])
    assert one.returncode == 0, one.stderr[-3000:]
    two = call([*RANKS, str(script), str(tmp_path / "two"), *options])
    assert two.returncode == 0, two.stderr[-3000:]
    assert_same_bytes(tmp_path / "one", tmp_path / "two")
    caches = [FeatureCache.open(tmp_path / name) for name in ("one", "two")]
    assert caches[0].fingerprint == caches[1].fingerprint
    assert [cache.manifest["made_by"]["ranks"] for cache in caches] == [1, 2]
    assert np.array_equal(caches[1].labels, FolderDataset(many).labels)


@pytest.mark.slow
def test_a_slow_rank_is_waited_for(small_run, many, tmp_path):
    """Its delay adds up to more than the deadline, as a slightly slower machine's would."""
    script = Path(__file__).with_name("rank_extract.py")
    options = [str(tmp_path / "slow"), str(small_run), str(many), "0", "slow"]
    done = call([*RANKS, str(script), *options])
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(FeatureCache.open(tmp_path / "slow").features("pool")) == 41


@pytest.mark.slow
def test_one_command_starts_its_ranks_and_reports_once(small_run, photos, tmp_path):
    done = call([*FASTROT, *extract(small_run, photos, tmp_path / "two", "--gpus", "2", "--json")])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 20  # one object: the other rank is silent
    cache = FeatureCache.open(tmp_path / "two")
    assert cache.manifest["made_by"]["ranks"] == 2
    lost = call([*FASTROT, *extract(small_run, tmp_path / "no", tmp_path / "x", "--gpus", "2")])
    assert lost.returncode in (64, 74) and "Traceback" not in lost.stderr, lost.stderr
