"""Runs the same command elsewhere: as a Slurm job, or once per rank on this machine."""

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
    """Submit the run if ``--cluster=slurm`` is given, and return whether it is.

    Args:
        options: options of ``fastrot train`` by parameter name.
        recipe: recipe of the run; None: only data was named.
        out: run folder.

    Raises:
        UsageError: options contradict each other, the folder holds a run, or Slurm refuses.
        typer.Exit: with ``--wait``, once the run has ended.
    """
    slurm: Sequence[str] = options["slurm"] or ()
    restarts = options.get("restarts", 0)
    if restarts and (options["gpus"] < 2 or options["cluster"] == "slurm"):
        raise UsageError(f"--restarts={restarts} needs --gpus 2 or more, and no --cluster slurm")
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
            f"{out}: already holds a run; add --resume to continue it, or choose another --out"
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
    """Start this command once per rank and exit with their code, unless it is a rank itself.

    Args:
        gpus: number of ranks on this machine.
        restarts: as for ``launch.launch``.
        again: as for ``launch.launch``.

    Raises:
        typer.Exit: all ranks have ended.
    """
    if gpus <= 1 or "RANK" in os.environ:
        return
    say = partial(print, file=sys.stderr)
    command = fastrot_command(sys.argv[1:])
    raise typer.Exit(launch(command, gpus, restarts=restarts, again=again, say=say))


def resume_option(out: Path, *, resume: bool) -> Sequence[str]:
    """Return what a restart adds to the command: ``--resume``, once there is a run to resume."""
    from fastrot.runs.folder import has_begun

    return ("--resume",) if not resume and has_begun(out) else ()


def train_words(options: Mapping[str, Any], recipe: str | None) -> list[str]:
    """Return the arguments that repeat a ``fastrot train`` command, except for its run folder."""
    words = ["train", *(() if recipe is None else ("-c", recipe))]
    for name, flag in _FORWARDED.items():
        if options.get(name) is not None:
            words += [flag, str(options[name])]
    if options.get("follow_symlinks"):
        words.append("--follow-symlinks")
    for override in options.get("overrides") or ():
        words += ["--set", override]
    return words
