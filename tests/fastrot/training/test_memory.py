"""Memory foretold before the first step: what a process really takes, and what a limit refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrot.config import Config, load_config
from fastrot.distributed.world import World
from fastrot.errors import OutOfMemoryError
from fastrot.training import memory
from fastrot.training.memory import check_memory, predict
from fastrot.training.step_backend import StepBackend

EAGER = StepBackend("eager", "torch", False, "")

# The most that the process ever held, less what it held before there was a model.
MEASURE = """
import sys
from contextlib import ExitStack
from pathlib import Path
from fastrot.config import load_config
from fastrot.training.data import open_data
from fastrot.training.memory import predict
from fastrot.training.resolve import choose_platform, resolve
from fastrot.training.run import prepare_torch
from fastrot.training.trainer import Trainer


def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


out, *settings = sys.argv[1:]
config = load_config(None, ["data.train=embedded:digits", "data.loader=synthetic", *settings])
platform = choose_platform(config)
data = open_data(config, Path(out), platform.world, platform.device, print)
run = resolve(config, platform, data, lambda _: None)
prepare_torch(run)
before = status("VmRSS")
with ExitStack() as stack:
    trainer = Trainer(run, data, Path(out), stack=stack, say=print)
    trainer.loader.set_epoch(0)
    batches = iter(trainer.loader)
    for _ in range(3):
        trainer.step([next(batches) for _ in range(run.batch.accumulation)])
    trainer.step.read()
foretold = predict(run.config, run.batch.per_pass, run.batch.accumulation, run.backend)
print(status("VmHWM") - before, foretold)
"""

BENCH = pytest.mark.chaos
CASES = [
    # Large enough that what the kernel adds (huge pages) or takes back (pages of libraries), some
    # 80 MB by what else the machine does, is no fifth.
    "model.name=resnet18 data.resolution=64 train.global_batch=32",
    pytest.param("model.name=resnet18 data.resolution=64 train.global_batch=8", marks=BENCH),
    pytest.param(
        "model.name=resnet18 data.resolution=32 train.global_batch=8 train.precision=fp64",
        marks=BENCH,
    ),
    pytest.param(
        "model.name=resnet18 data.resolution=64 train.global_batch=16 train.precision=bf16",
        marks=BENCH,
    ),
    pytest.param("model.name=resnet50 data.resolution=224 train.global_batch=2", marks=BENCH),
    pytest.param(
        "model.name=rotnet_nin data.resolution=32 train.global_batch=16 train.precision=bf16",
        marks=BENCH,
    ),
    pytest.param(
        "model.name=resnet18 data.resolution=64 train.global_batch=32 train.precision=fp64",
        marks=BENCH,
    ),
    pytest.param(
        "model.name=resnet18 data.resolution=64 train.global_batch=32 train.micro_batch=8",
        marks=BENCH,
    ),
]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("settings", CASES)
def test_what_a_process_takes_is_foretold_within_a_fifth(settings: str, tmp_path: Path) -> None:
    words = ["train.device=cpu", "train.threads=1", *settings.split()]
    command = [sys.executable, "-c", MEASURE, str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, foretold = map(int, done.stdout.split()[-2:])
    print(f"{settings}: measured {measured / 1e6:.0f} MB, foretold {foretold / 1e6:.0f} MB")
    assert foretold == pytest.approx(measured, rel=0.2)


def config(*settings: str) -> Config:
    return load_config(None, ["train.device=cpu", "train.precision=fp32", *settings])


def test_maps_grow_with_images_and_area_and_weights_do_not() -> None:
    small = config("model.name=resnet18", "data.resolution=256")
    large = config("model.name=resnet18", "data.resolution=512")
    taken = [
        predict(small, 32, 1, EAGER),
        predict(small, 64, 1, EAGER),
        predict(large, 16, 1, EAGER),
    ]
    assert 1.7 < taken[1] / taken[0] < 2
    assert taken[2] == pytest.approx(taken[1], rel=0.01 + 0.5)  # as many pixels as `small` with 64
    assert predict(small, 32, 2, EAGER) > taken[0] + 40e6  # gradients wait beside the maps


def limited(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: int(free))


def test_too_much_is_refused_with_both_figures_and_what_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    limited(monkeypatch, 24e9)
    published = config("train.global_batch=128")
    with pytest.raises(OutOfMemoryError) as refused:
        check_memory(published, 128, 1, EAGER, World(), said.append)
    assert refused.value.exit_code == 71
    text = str(refused.value)
    assert "about 45.0 GB of memory (128 images, 512 views in a pass at 224 px, fp32)" in text
    assert "24.0 GB are free" in text and "\n" not in text
    assert "--set train.micro_batch=32 fits (batch norm then sees 32 images at a time" in text
    check_memory(published, 32, 4, EAGER, World(), said.append)
    assert not said


def test_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    asked = config("model.name=resnet18", "data.resolution=64")
    needed = predict(asked, 16, 1, EAGER)
    limited(monkeypatch, 3 * needed)
    check_memory(asked, 16, 1, EAGER, World(), said.append)
    check_memory(asked, 16, 1, EAGER, World(size=2, local_size=2), said.append)
    assert not said
    check_memory(asked, 16, 1, EAGER, World(size=3, local_size=3), said.append)
    assert "little is left" in said[0] and "for each of 3 ranks" in said[0]
    with pytest.raises(OutOfMemoryError):
        check_memory(asked, 16, 1, EAGER, World(size=4, local_size=4), said.append)


def test_what_never_fits_is_not_told_to_take_a_smaller_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited(monkeypatch, 100e6)
    with pytest.raises(OutOfMemoryError, match=r"no train\.micro_batch makes it fit"):
        check_memory(config("model.name=resnet18"), 8, 1, EAGER, World(), print)


def test_a_system_that_does_not_tell_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0)
    check_memory(config(), 128, 1, EAGER, World(), print)


def test_the_weights_of_the_run_do_not_depend_on_it() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    predict(config("model.name=resnet18", "model.width=8"), 4, 1, EAGER)
    assert torch.equal(before, torch.random.get_rng_state())
