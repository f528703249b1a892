"""``fastrot train``: pretrain a backbone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastrot.cli.launch import on_ranks, resumption, submitted
from fastrot.cli.options import Cluster, Gpus, Nodes, SkipOrFail, Slurm, Wait
from fastrot.errors import UsageError

if TYPE_CHECKING:
    from fastrot.system.yaml_config import Override

app = typer.Typer()


@app.command()
def train(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option("-c", "--config", metavar="RECIPE", help="A YAML file or a shipped recipe."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Training images: a .beton file or a folder.")
    ] = None,
    ffcv: Annotated[
        Path | None, typer.Option(metavar="FILE.beton", help="The same as --data, for FFCV files.")
    ] = None,
    dali: Annotated[
        Path | None, typer.Option(metavar="DATA", help="The same as --data DATA --loader dali.")
    ] = None,
    val: Annotated[Path | None, typer.Option(help="Held-out images, measured every epoch.")] = None,
    loader: Annotated[
        str | None,
        typer.Option(metavar="auto|native|ffcv|dali|reference|synthetic", help="The engine."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default: runs/ and the recipe's name.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run folder.")
    ] = False,
    on_bad_sample: SkipOrFail = None,
    gpus: Gpus = 1,
    restarts: Annotated[
        int, typer.Option(min=0, help="With --gpus: start anew so often after a rank was lost.")
    ] = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.epochs=10."
        ),
    ] = None,
    cluster: Cluster = "local",
    nodes: Nodes = 1,
    slurm: Slurm = None,
    wait: Wait = False,
) -> None:
    """Pretrain a backbone. With neither a recipe nor data: on the embedded digits."""
    from fastrot.config import load_config

    named = [(flag, path) for flag, path in (("--data", data), ("--ffcv", ffcv), ("--dali", dali))
             if path is not None]  # fmt: skip
    if len(named) > 1:
        raise UsageError(f"{' and '.join(flag for flag, _ in named)} both name the data; keep one")
    settings: list[Override] = list(overrides or [])
    if named:
        settings.append(("data.train", os.path.abspath(named[0][1])))
    if val is not None:
        settings.append(("data.val", os.path.abspath(val)))
    if dali is not None and loader is None:
        loader = "dali"
    if loader is not None:
        settings.append(("data.loader", loader))
    if on_bad_sample is not None:
        settings.append(("data.on_bad_sample", on_bad_sample))
    recipe = "digits" if config is None and not named else config
    loaded = load_config(recipe, settings)
    name = Path(recipe or os.path.abspath(named[0][1])).stem or "run"
    if restarts and (gpus < 2 or cluster == "slurm"):
        raise UsageError(f"--restarts={restarts} is for --gpus N, and without --cluster slurm")
    folder = out or Path("runs") / name
    if submitted(context.params, recipe, folder):
        return
    on_ranks(gpus, restarts=restarts, again=lambda: resumption(folder, resume=resume))

    from fastrot.distributed.world import read_world
    from fastrot.runs.reporter import TerminalReporter
    from fastrot.training.request import TrainRequest
    from fastrot.training.run import train as run

    request = TrainRequest(
        config=loaded,
        recipe=config,
        overrides=tuple(settings),
        out=folder,
        resume=resume,
    )
    with TerminalReporter(quiet=not read_world().is_main) as reporter:
        result = run(request, reporter)
        reporter.finished(result)
