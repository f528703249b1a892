"""Every command of the README runs, in a folder laid out as the README says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from fastrot.cli.app import app
from tests.program import run_python

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.strip().splitlines()]

# What makes a run of hours one of seconds; everything else is as the README has it.
SHORT = ["data.resolution=32", "data.workers=0", "model.width=8", "train.global_batch=8"]
SHORT += ["train.max_steps=2", "train.threads=1", "sinks.tensorboard=false"]
SHORT_EVAL = ["features.resolution=32", "features.resize=36", "svm.folds=2", "svm.costs=[1, 0.01]"]
SHORT_EVAL += ["linear.epochs=1", "linear.milestones=[]", "knn.k=[1, 4]", "lowshot.draws=1"]
SHORT_BENCH = {
    "svm": ["--set", "svm.folds=2", "--set", "svm.costs=[1]", "--peers", "linearsvc"],
    "knn": ["--bank", "64", "--queries", "8", "--dims", "16", "-k", "4", "--rounds", "1"],
    "linear": ["--peers", "cyanure", "--rounds", "1"],
    "train-step": [
        *("--model", "resnet18", "--width", "8", "--resolution", "32,64", "--batch", "2"),
        *("--rounds", "1", "--seconds", "0.1", "--steps", "eager,fused", "--parity-steps", "1"),
    ],
    "kernels": [
        *("--ops", "rotate-4,bn-relu-forward", "--resolution", "32", "--batch", "1"),
        *("--rounds", "1", "--runs", "1", "--peers", "reference,torch"),
    ],
    "train": [
        *("-c", "photos_cpu", "--loaders", "native", "--repeat", "20", "--rounds", "1"),
        *("--seconds", "0.1", "--set", "model.width=8", "--set", "train.global_batch=8"),
    ],
    "sweep": [
        *("--set", "seconds=0.3", "--set", "repeats=1", "--set", "warm_up_steps=1"),
        *("--set", "data.resolution=32", "--set", "model.width=8", "--set", "train.threads=1"),
        *("--set", "train.global_batch=8"),
    ],
    "extract": ["--resolution", "32", "--batch", "4", "--rounds", "1", "--seconds", "0.1"],
    "loader": [  # tests/benchmarks/loader runs all the others
        *("--rounds", "1", "--seconds", "0.2", "--starts", "1", "--repeat", "4", "--batch", "16"),
    ],
}
# Each of these starts many processes. `make chaos` runs them; `make test` parses them here, and
# runs what they do in tests/benchmarks and tests/ranks.
COSTLY = r"bench (loader|train|sweep)|runs/first_look|--gpus 8 *$|^torchrun"


def test_readme_has_the_commands_that_matter() -> None:
    programs = {shlex.split(command)[0] for command in COMMANDS}
    assert programs == {"make", "fastrot", "torchrun"}
    assert "fastrot train --ffcv imagenet.beton" in COMMANDS


def test_readme_holds_no_placeholder() -> None:
    """That its links resolve is held by tests/test_architecture.py, for every page."""
    assert not re.findall(r"@@|\bTODO\b|\bTBD\b", README)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, test_data: Callable[[str], Path]) -> Path:
    """A folder with photos/, imagenet/ and imagenette*.beton of a few real photos each."""
    root = tmp_path_factory.mktemp("readme")
    photos = test_data("imagenette-128")
    for split, count in (("train", 4), ("val", 2)):
        for source in sorted((photos / split).iterdir())[:4]:
            target = root / "imagenet" / split / source.name
            target.mkdir(parents=True)
            for number, image in enumerate(sorted(source.iterdir())[:count]):
                shutil.copy(image, target / f"{number}.JPEG")
    shutil.copytree(root / "imagenet" / "train", root / "photos")
    shutil.copytree(test_data("voc-mini") / "VOCdevkit", root / "VOCdevkit")
    shutil.copytree(test_data("coco-mini"), root / "coco")
    fastrot = [sys.executable, "-m", "fastrot", "prepare", "imagenet"]
    run_python([*fastrot, "imagenette.beton", "--split", "train"], cwd=root, check=True)
    run_python([*fastrot, "imagenette-val.beton", "--split", "val"], cwd=root, check=True)
    shutil.copy(root / "imagenette.beton", root / "imagenet.beton")
    (sweep,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (root / "first_look.yaml").write_text(sweep.replace("workers: [1, 2]", "workers: [1]"))
    return root


def test_commands_of_the_readme_parse() -> None:
    for words in map(shlex.split, COMMANDS):
        if "fastrot" in words:
            command, left = get_command(app), words[words.index("fastrot") + 1 :]
            while isinstance(command, TyperGroup):
                command, left = command.commands[left[0]], left[1:]
            command.make_context(words[0], left)


@pytest.mark.slow
@pytest.mark.parametrize("costly", [False, pytest.param(True, marks=pytest.mark.chaos)])
def test_commands_of_the_readme_run(folder: Path, costly: bool) -> None:
    """In the order of the README, because some use what an earlier one made."""
    # The first use of imagenet.beton stands before the section that makes it.
    made_early = ["imagenet.beton"]
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True)
            assert done.returncode == 0, (command, done.stderr)
            continue
        if not costly and re.search(COSTLY, command):
            continue
        if words[:2] == ["fastrot", "prepare"]:
            for name in made_early:
                for path in folder.glob(f"{name}*"):
                    path.unlink()
            made_early = []
        run(words, folder)


def run(words: list[str], folder: Path) -> None:
    command = list(words)
    if words[1] == "train" or words[0] == "torchrun":
        command += [word for setting in SHORT for word in ("--set", setting)]
    if words[1] in ("eval", "extract"):
        command += [word for setting in SHORT_EVAL for word in ("--set", setting)]
    if words[1] == "bench":
        short = SHORT_BENCH[words[2]]
        given = {word for word in short if word.startswith("-")} - {"--set"}
        command = without_options(command, given) + short
    if "--gpus" in command and command[1] == "train":
        command[command.index("--gpus") + 1] = "2"
    if command[0] == "torchrun":
        command[command.index("8")] = "2"
        command = [sys.executable, "-m", "torch.distributed.run", *command[1:]]
    else:
        command = [sys.executable, "-m", *command]
    done = run_python(command, cwd=folder, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, (shlex.join(words), done.stderr[-3000:])


def without_options(command: list[str], names: set[str]) -> list[str]:
    """A command without these options and their values, because an option is given only once."""
    values = {place + 1 for place, word in enumerate(command) if word in names}
    return [word for place, word in enumerate(command) if word not in names and place not in values]


def test_python_of_the_readme_is_what_torchvision_takes() -> None:
    """tests/fastrot/training/test_run.py runs the block itself on its backbone.safetensors."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    compile(block, "README.md", "exec")
    assert "torchvision.models.resnet50()" in block and "backbone.safetensors" in block


def test_recipes_of_the_readme_are_the_shipped_ones() -> None:
    from fastrot.config import known_keys
    from fastrot.system.yaml_config import shipped_names

    assert set(re.findall(r"^\| `([\w-]+)` \| (?!DALI)[^|]*\|$", README, re.MULTILINE)) >= set(
        shipped_names()
    )
    named = set(re.findall(r"`((?:data|pretext|model|optim|train|sinks)\.\w+)[`=]", README))
    assert named and named <= set(known_keys())
