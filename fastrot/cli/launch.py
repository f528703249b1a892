"""The same command elsewhere: as a job of Slurm, or once per rank of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from fastrot.distributed.launch import fastrot_command, launch
from fastrot.errors import UsageError

_FORWARDED = {
    "data": "--data",
    "ffcv": "--ffcv",
    "dali": "--dali",
    "val": "--val",
    "loader": "--loader",
    "on_bad_sample": "--on-bad-sample",
}
"""Options that mean the same in the job."""


def submit_if_asked(options: Mapping[str, Any], recipe: str | None, out: Path) -> bool:
    """Submit the run where ``--cluster`` asks for it, and say what to type next.

    Args:
        options: of ``fastrot train``, by the names of its parameters.
        recipe: that it trains by; None: data alone was named.
        out: run folder.

    Raises:
        UsageError: options that do not go together, a folder with a run, or Slurm refuses.
        typer.Exit: with ``--wait``, once the run has ended.
    """
    slurm: Sequence[str] = options["slurm"] or ()
    restarts = options.get("restarts", 0)
    if restarts and (options["gpus"] < 2 or options["cluster"] == "slurm"):
        raise UsageError(f"--restarts={restarts} is for --gpus N, and without --cluster slurm")
    if options["cluster"] not in ("local", "slurm"):
        raise UsageError(f"--cluster={options['cluster']!r}: choose local or slurm")
    if options["cluster"] == "local":
        if options["nodes"] > 1 or options["gpus"] < 1 or slurm or options["wait"]:
            raise UsageError(
                "--nodes, --gpus 0, --slurm and --wait are for --cluster slurm; add it, or leave "
                "them out"
            )
        return False
    from fastrot.distributed.slurm import parse_slurm_options
    from fastrot.runs.folder import has_begun
    from fastrot.runs.slurm_job import submit_train, wait_for

    settings = parse_slurm_options(slurm)
    if not options["resume"] and has_begun(out):
        raise UsageError(
            f"{out}: already holds a run; add --resume to go on with it, or choose another --out"
        )
    submission = submit_train(
        train_words(options, recipe),
        out,
        nodes=options["nodes"],
        gpus=options["gpus"],
        settings=settings,
    )
    for line in submission.lines():
        typer.echo(line)
    if options["wait"]:
        raise typer.Exit(wait_for(submission, typer.echo))
    return True


def on_ranks(
    gpus: int, *, restarts: int = 0, again: Callable[[], Sequence[str]] = lambda: ()
) -> None:
    """Start this command once per rank, unless it is one of them, and exit with their exit code.

    Args:
        gpus: ranks of this machine.
        restarts: as for ``launch.launch``.
        again: likewise.

    Raises:
        typer.Exit: all ranks have ended.
    """
    if gpus <= 1 or "RANK" in os.environ:
        return
    say = partial(print, file=sys.stderr)
    command = fastrot_command(sys.argv[1:])
    raise typer.Exit(launch(command, gpus, restarts=restarts, again=again, say=say))


def resume_option(out: Path, *, resume: bool) -> Sequence[str]:
    """What a new start adds to the command: ``--resume``, once there is something to go on with."""
    from fastrot.runs.folder import has_begun

    return ("--resume",) if not resume and has_begun(out) else ()


def train_words(options: Mapping[str, Any], recipe: str | None) -> list[str]:
    """The words of ``fastrot train`` that say the same again, but for the run folder."""
    words = ["train", *(() if recipe is None else ("-c", recipe))]
    for name, flag in _FORWARDED.items():
        if options.get(name) is not None:
            words += [flag, str(options[name])]
    if options.get("follow_symlinks"):
        words.append("--follow-symlinks")
    for override in options.get("overrides") or ():
        words += ["--set", override]
    return words
