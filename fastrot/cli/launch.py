"""Runs the same command elsewhere: as a Slurm job, or once per rank on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fastrot.distributed.launch import fastrot_command, launch
from fastrot.errors import UsageError

if TYPE_CHECKING:
    from fastrot.distributed.slurm import TrainSlurmSettings

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
    settings = slurm_settings(options)
    if settings is None:
        return False
    from fastrot.runs.folder import has_begun

    if not options["resume"] and has_begun(out):
        raise UsageError(
            f"{out}: already holds a run; add --resume to continue it, or choose another --out"
        )
    submit(train_words(options, recipe), out, options, settings)
    return True


def slurm_settings(options: Mapping[str, Any]) -> TrainSlurmSettings | None:
    """Return what a job requests from Slurm; None without ``--cluster=slurm``.

    Args:
        options: options of the command by parameter name.

    Raises:
        UsageError: options contradict each other.
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
        return None
    from fastrot.distributed.slurm import parse_slurm_options

    return parse_slurm_options(slurm)


def submit(
    words: Sequence[str], out: Path, options: Mapping[str, Any], settings: TrainSlurmSettings
) -> None:
    """Submit a command and say what to type next.

    Args:
        words: as for ``slurm_job.submit_command``.
        out: likewise.
        options: options of the command by parameter name.
        settings: of ``slurm_settings``.

    Raises:
        UsageError: Slurm refuses.
        typer.Exit: with ``--wait``, once the job has ended.
    """
    from fastrot.runs.slurm_job import submit_command, wait_for

    submission = submit_command(
        words, out, nodes=options["nodes"], gpus=options["gpus"], settings=settings
    )
    for line in submission.lines():
        typer.echo(line)
    if options["wait"]:
        raise typer.Exit(wait_for(submission, typer.echo))


def on_ranks(
    gpus: int, *, restarts: int = 0, again: Callable[[], Sequence[str]] = lambda: ()
) -> None:
    """Start this command once per rank and exit with their code, unless it is a rank itself.

    Args:
        gpus: number of ranks on this machine.
        restarts: as for ``launch.launch``.
        again: as for ``launch.launch``.

    Raises:
        typer.Exit: all ranks have exited.
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


def repeated_words(context: typer.Context, *left_out: str) -> list[str]:
    """Return the arguments that repeat this command, without the options of some parameters."""
    words = [str(context.info_name)]
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params[str(parameter.name)]
        if name in left_out or value in (None, [], (), parameter.default):
            continue
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        elif getattr(parameter, "multiple", False):
            words += [word for each in value for word in (parameter.opts[0], str(each))]
        else:
            words += [parameter.opts[0], *map(str, value if parameter.nargs > 1 else [value])]
    return words


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
