from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from fastrot.cli.app import app
from fastrot.cli.launch import repeated_words, submit_if_asked, train_words
from fastrot.errors import UsageError
from fastrot.runs.checkpoint import save_checkpoint


def options(**changes: Any) -> dict[str, Any]:
    return {"cluster": "local", "nodes": 1, "gpus": 1, "slurm": None, "wait": False,
            "resume": False, **changes}  # fmt: skip


def test_the_job_says_what_the_user_said() -> None:
    given = options(
        data=Path("a b.beton"), loader="native", overrides=["train.seed=1", "model.width=8"]
    )
    assert train_words(given, "digits") == [
        *("train", "-c", "digits", "--data", "a b.beton", "--loader", "native"),
        *("--set", "train.seed=1", "--set", "model.width=8"),
    ]
    assert train_words(options(ffcv=Path("x.beton")), None) == ["train", "--ffcv", "x.beton"]


EVAL = [
    *("eval", "knn", "w.safetensors", "--train", "a b", "--test", "c", "--mode", "cached-0"),
    *("--not-beside-random", "--model", "resnet18", "--random-init", "--set", "knn.k=[1]"),
    *("--set", "model.width=8"),
]


def test_a_job_repeats_an_evaluation() -> None:
    command: Any = typer.main.get_command(app)
    for words in (EVAL, ["eval", "suite", "run", "--voc07", "a", "b", "--beside-random"]):
        placed = ["--cluster", "slurm", "--gpus", "2", "--slurm", "qos=a", "--out", "o", "--wait"]
        context = command.commands["eval"].make_context("eval", [*words[1:], *placed])
        left_out = ("cluster", "nodes", "gpus", "slurm", "wait", "out")
        assert repeated_words(context, *left_out) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2"], "are for --cluster slurm"),
        (["--gpus", "0"], "are for --cluster slurm"),
        (["--cluster", "cloud"], "choose local or slurm"),
        (["--cluster", "slurm", "--slurm", "qos"], "write key=value"),
        (["--cluster", "slurm", "--json"], "omit --json"),
        (["--cluster", "slurm", "--mode", "augmented"], "mode 'augmented'"),
        (["--cluster", "slurm", "--set", "knn.no=1"], "knn.no"),
    ],
)
def test_an_evaluation_is_checked_before_it_is_submitted(words: list[str], message: str) -> None:
    command: Any = typer.main.get_command(app)
    with pytest.raises(UsageError, match=message):
        command.main([*EVAL[:7], *words], standalone_mode=False)


def test_without_a_cluster_nothing_is_submitted(tmp_path: Path) -> None:
    assert not submit_if_asked(options(gpus=4), "digits", tmp_path)


@pytest.mark.parametrize(
    "change", [{"nodes": 2}, {"gpus": 0}, {"slurm": ["qos=a"]}, {"wait": True}]
)
def test_options_of_slurm_without_slurm(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--cluster slurm"):
        submit_if_asked(options(**change), "digits", tmp_path)


def test_an_unknown_cluster(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="local or slurm"):
        submit_if_asked(options(cluster="cloud"), "digits", tmp_path)


def test_a_run_that_is_there_is_not_gone_on_with_by_mistake(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tmp_path / "checkpoints", 3, {}, {}, run_id="1" * 16, exports={})
    with pytest.raises(UsageError, match="add --resume"):
        submit_if_asked(options(cluster="slurm"), "digits", tmp_path)
