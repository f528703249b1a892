"""The command line: parse, load the configuration, call one function. No logic.

Heavy packages are imported by the command that needs them, so that ``--help``, ``inspect`` and
``verify`` answer at once.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Protocol, cast

import typer

from fastrot import __version__
from fastrot.cli.bench import add_bench_commands
from fastrot.cli.bench_training import add_step_commands
from fastrot.cli.evaluate import add_commands
from fastrot.cli.launch import (
    Cluster,
    Gpus,
    Nodes,
    Slurm,
    Wait,
    on_ranks,
    resumption,
    said_by_another_rank,
    submitted,
)
from fastrot.cli.plan import add_plan_commands
from fastrot.cli.sweep import add_sweep_command
from fastrot.errors import FastrotError, StorageError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from fastrot.data.sources.find import SourceKind
    from fastrot.system.yaml_config import Override

_INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended

app = typer.Typer(
    name="fastrot",
    help="Pretrain image backbones by rotation prediction, and measure what they learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

bench = typer.Typer(help="Measure fastrot beside its peers.", no_args_is_help=True)
app.add_typer(bench, name="bench")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SkipOrFail = Annotated[
    str | None, typer.Option("--on-bad-sample", metavar="fail|skip", help="What a bad sample does.")
]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"fastrot {__version__}")
        raise typer.Exit


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
    from fastrot.training.run import TrainRequest
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


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="The folder with the data set.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.beton", help="The file to write.")],
    kind: Annotated[
        str,
        typer.Option(
            metavar="auto|folder|cifar|voc07|coco|imagenet|places205|inat18",
            help="What the source is.",
        ),
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="Part of a source that has parts.")] = None,
    max_side: Annotated[
        int | None, typer.Option(help="Shrink until the longest side is at most this, in pixels.")
    ] = None,
    quality: Annotated[
        int | None, typer.Option(help="JPEG quality, 1 to 100 (default: 90).")
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Keep the bytes of JPEGs that need no change, undecoded.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes (default: the cores this process may use).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.beton.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order of the images in the file.")] = 0,
    page_size: Annotated[int | None, typer.Option(help="Bytes; a power of two.")] = None,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Also read links that leave SOURCE.")
    ] = False,
    on_bad_sample: SkipOrFail = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Convert a data set to a .beton file with a manifest of checksums."""
    from fastrot.data.prepare.convert import prepare as run

    convert = partial(
        run,
        source,
        out,
        kind=cast("SourceKind", kind),
        split=split,
        max_side=max_side,
        quality=quality,
        copy=copy,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        page_size=page_size,
        follow_symlinks=follow_symlinks,
        on_bad_sample=cast("Literal['fail', 'skip']", on_bad_sample or "fail"),
        dry_run=dry_run,
        progress=not json,
    )
    try:
        _show(convert(), json)
    except KeyboardInterrupt:
        _leave("fastrot: interrupted; the same command with --resume goes on", _INTERRUPTED)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE.beton")], json: AsJson = False
) -> None:
    """Say what is in a .beton file."""
    from fastrot.data.beton.inspect import inspect as run

    _show(run(file), json)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.beton")],
    workers: Annotated[
        int | None, typer.Option(help="Threads (default: the cores this process may use).")
    ] = None,
    json: AsJson = False,
) -> None:
    """Check structure and checksums of a .beton file and decode every image strictly."""
    from fastrot.data.beton.verify import verify as run

    _show(run(file, workers=workers, progress=not json), json)


@bench.command("loader")
def bench_loader(
    data: Annotated[
        Path, typer.Option(help="A .beton file or a folder; for prepare: the source folder.")
    ],
    what: Annotated[
        str, typer.Option(metavar="load|prepare", help="Reading batches, or converting.")
    ] = "load",
    peers: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="(default: all that fit).")
    ] = None,
    loader: Annotated[
        str, typer.Option(metavar="native|ffcv|dali|reference", help="Which of ours is compared.")
    ] = "native",
    size: Annotated[int, typer.Option(help="Side of the crops, in pixels.")] = 224,
    batch: Annotated[int, typer.Option(help="Images a batch.")] = 128,
    crop: Annotated[str, typer.Option(metavar="random_resized|center|whole")] = "random_resized",
    exact: Annotated[
        bool, typer.Option("--exact", help="Ours decodes every crop at full resolution.")
    ] = False,
    checksums: Annotated[bool, typer.Option(help="Ours compares the manifest's checksums.")] = True,
    max_side: Annotated[int | None, typer.Option(help="prepare: as of fastrot prepare.")] = None,
    quality: Annotated[int, typer.Option(help="prepare: JPEG quality, 1 to 100.")] = 90,
    workers: Annotated[
        int | None, typer.Option(help="Cores of each contender (default: the usable ones).")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contender.")] = 5,
    seconds: Annotated[float, typer.Option(help="Least length of a turn.")] = 3.0,
    starts: Annotated[int, typer.Option(help="Fresh processes of each, for the start-up.")] = 3,
    repeat: Annotated[
        int | None, typer.Option(help="Copies of the data (default: up to 3,000 images).")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one object.")] = None,
    append: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Add a record for each contender.")
    ] = None,
) -> None:
    """Measure loading, or converting, beside FFCV, DALI and torchvision in one run."""
    names = tuple(peers.split(",")) if peers else None
    from fastrot.benchmarks.common.harness import check_outputs

    check_outputs(json, append)
    if what == "prepare":
        from fastrot.benchmarks.loader.prepare import bench_prepare

        report = bench_prepare(
            data,
            peers=names,
            max_side=max_side,
            quality=quality,
            workers=workers,
            rounds=rounds,
            repeat=repeat,
        )
    elif what == "load":
        from fastrot.benchmarks.loader.run import bench_loader as bench_load

        report = bench_load(
            data,
            peers=names,
            loader=loader,
            size=size,
            batch=batch,
            workers=workers,
            rounds=rounds,
            seconds=seconds,
            starts=starts,
            crop=crop,
            exact=exact,
            checksums=checksums,
            repeat=repeat,
        )
    else:
        raise UsageError(f"--what={what!r} is not known; choose load or prepare")
    report.save(json, append)
    _show(report, as_json=False)


@app.command()
def doctor(json: AsJson = False) -> None:
    """Say what is installed, what it means, and what to type."""
    from fastrot.cli.doctor import doctor as run

    run(as_json=json)


class Report(Protocol):
    """What a command found or did."""

    @property
    def exit_code(self) -> int:
        """Of the command."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def show(self, console: Console) -> None:
        """Print it for people."""
        ...


def _show(report: Report, as_json: bool) -> None:
    """Print a report for people or for programs, and leave with its exit code."""
    from rich.console import Console

    from fastrot.system.console import to_a_reader

    with to_a_reader():
        if as_json:
            import json

            typer.echo(json.dumps(report.to_json()))
        else:
            report.show(Console())
    raise typer.Exit(report.exit_code)


add_commands(app, _show)
add_bench_commands(bench, _show)
add_step_commands(bench, _show)
add_plan_commands(app, bench, _show)
add_sweep_command(bench, _show)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with the exit code of its outcome."""
    if not {"train", "doctor", "extract", "eval"} & set(sys.argv[1:2]):
        # numpy's idle BLAS threads spin; the commands that only look need none.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="fastrot", standalone_mode=False)
    except FastrotError as error:
        line = str(error) if error.rank is None else f"rank {error.rank}: {error}"
        silent = error.reported_elsewhere or said_by_another_rank(line)
        _leave("" if silent else f"fastrot: {line}", error.exit_code)
    except typer.TyperException as error:
        text = error.format_message().strip().rstrip(".;")
        _leave(f"fastrot: {text}; `fastrot --help` shows what there is" if text else "", 64)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _leave(f"fastrot: {where}{error.strerror or error}", StorageError.exit_code)
    if code == _INTERRUPTED:
        _leave("fastrot: interrupted", _INTERRUPTED)
    sys.exit(code or 0)


def _leave(line: str, code: int) -> NoReturn:
    if line:
        print(line, file=sys.stderr)
    sys.exit(code)
