"""The command line: parse, load the configuration, call one function. No logic.

Heavy packages are imported by the command that needs them, so that ``--help``, ``inspect`` and
``verify`` answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fastrot import __version__
from fastrot.errors import FastrotError, UsageError

app = typer.Typer(
    name="fastrot",
    help="Pretrain image backbones by rotation prediction, and measure what they learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
        str | None, typer.Option(metavar="auto|ffcv|dali|reference|synthetic", help="The engine.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default: runs/ and the recipe's name.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run folder.")
    ] = False,
    on_bad_sample: SkipOrFail = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.epochs=10."
        ),
    ] = None,
) -> None:
    """Pretrain a backbone. With neither a recipe nor data: on the embedded digits."""
    from fastrot.config import load_config

    named = [(flag, path) for flag, path in (("--data", data), ("--ffcv", ffcv), ("--dali", dali))
             if path is not None]  # fmt: skip
    if len(named) > 1:
        raise UsageError(f"{' and '.join(flag for flag, _ in named)} both name the data; keep one")
    settings = list(overrides or [])
    if named:
        settings.append(f"data.train={_quoted(named[0][1])}")
    if val is not None:
        settings.append(f"data.val={_quoted(val)}")
    if dali is not None and loader is None:
        loader = "dali"
    if loader is not None:
        settings.append(f"data.loader={loader}")
    if on_bad_sample is not None:
        settings.append(f"data.on_bad_sample={on_bad_sample}")
    if config is None and not named:
        config = "digits"
    loaded = load_config(config, settings)
    name = Path(config or named[0][1]).stem

    from fastrot.distributed import read_world
    from fastrot.screen import RunScreen
    from fastrot.train import TrainRequest
    from fastrot.train import train as run

    request = TrainRequest(loaded, tuple(settings), out or Path("runs") / name, resume)
    with RunScreen(quiet=not read_world().is_main) as screen:
        result = run(request, screen)
        screen.finished(result)


def _quoted(path: Path) -> str:
    """A path as a YAML string; absolute, because a run may be resumed from another folder."""
    import json

    return json.dumps(os.path.abspath(path))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with the exit code of its outcome."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="fastrot", standalone_mode=False)
    except FastrotError as error:
        _leave(f"fastrot: {error}", error.exit_code)
    except typer.TyperException as error:
        _leave(f"fastrot: {error.format_message()}; `fastrot --help` shows what there is", 64)
    except (KeyboardInterrupt, typer.Abort):
        _leave("fastrot: interrupted", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _leave(f"fastrot: {where}{error.strerror or error}; nothing was left half-written", 74)
    sys.exit(code or 0)


def _leave(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)
