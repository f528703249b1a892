"""``fastrot train``: pretrain a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.launch import on_ranks, resume_option, submit_if_asked
from fastrot.cli.options import (
    Cluster,
    FollowSymlinks,
    Gpus,
    Nodes,
    SkipOrFail,
    Slurm,
    TrainOverrides,
    Wait,
)

app = typer.Typer()


@app.command()
def train(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option("-c", "--config", metavar="RECIPE", help="A YAML file or a shipped recipe."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Training images: a .beton file, a folder or tar shards.")
    ] = None,
    ffcv: Annotated[
        Path | None, typer.Option(metavar="FILE.beton", help="Same as --data, for FFCV files.")
    ] = None,
    dali: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Same as --data DATA --loader dali.")
    ] = None,
    val: Annotated[Path | None, typer.Option(help="Held-out images for validation.")] = None,
    loader: Annotated[
        str | None,
        typer.Option(metavar="auto|native|ffcv|dali|reference|synthetic", help="Loader to use."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: runs/ and the recipe's name).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in the run folder.")
    ] = False,
    on_bad_sample: SkipOrFail = None,
    follow_symlinks: FollowSymlinks = False,
    gpus: Gpus = 1,
    restarts: Annotated[
        int, typer.Option(min=0, help="With --gpus: maximum number of restarts after a lost rank.")
    ] = 0,
    overrides: TrainOverrides = None,
    cluster: Cluster = "local",
    nodes: Nodes = 1,
    slurm: Slurm = None,
    wait: Wait = False,
) -> None:
    """Pretrain a backbone; without a recipe and data, on the embedded digits."""
    from fastrot.training.request import train_request

    request = train_request(
        recipe=config,
        data={"--data": data, "--ffcv": ffcv, "--dali": dali},
        val=val,
        loader=loader,
        on_bad_sample=on_bad_sample,
        follow_symlinks=follow_symlinks,
        overrides=overrides or (),
        out=out,
        resume=resume,
    )
    if submit_if_asked(context.params, request.base, request.out):
        return
    on_ranks(gpus, restarts=restarts, again=lambda: resume_option(request.out, resume=resume))

    from fastrot.distributed.world import read_world
    from fastrot.runs.reporter import TerminalReporter
    from fastrot.training.run import train as run

    with TerminalReporter(quiet=not read_world().is_main) as reporter:
        result = run(request, reporter)
        reporter.finished(result)
