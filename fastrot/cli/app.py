"""The command line: it combines one Typer app per file and turns errors into exit codes.

Every command parses its options into one request and calls one function, without further logic.

Heavy packages are imported by the command that needs them, so that ``--help``, ``inspect`` and
``verify`` respond at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from fastrot import __version__
from fastrot.cli import (
    bench,
    bench_training,
    data,
    doctor_command,
    evaluate,
    export,
    plan,
    sweep,
    train,
)
from fastrot.cli.repeated import refuse_repeats
from fastrot.cli.show import INTERRUPTED, leave
from fastrot.distributed.error_reporting import line_to_print
from fastrot.errors import FastrotError, StorageError
from fastrot.system.console import print_anything

app = typer.Typer(
    name="fastrot",
    help="Pretrain image backbones by rotation prediction and evaluate what they have learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
benches = typer.Typer(help="Compare fastrot with other libraries.", no_args_is_help=True)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"fastrot {__version__}")
        raise typer.Exit


for _commands in (doctor_command, train, data, evaluate, export, plan):
    app.add_typer(_commands.app)
for _commands in (bench, bench_training, sweep):
    benches.add_typer(_commands.app)
benches.add_typer(plan.bench)
app.add_typer(benches, name="bench")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of its outcome."""
    if not {"train", "doctor", "extract", "eval"} & set(sys.argv[1:2]):
        # numpy's idle BLAS threads spin; the other commands need none.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    print_anything()
    command = typer.main.get_command(app)
    refuse_repeats(command)
    try:
        code = command.main(args=arguments, prog_name="fastrot", standalone_mode=False)
    except FastrotError as error:
        leave(line_to_print(error), error.exit_code)
    except typer.TyperException as error:
        text = error.format_message().strip().rstrip(".;")
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "fastrot"
        leave(f"fastrot: {text}; see `{path} --help`" if text else "", 64)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        leave(f"fastrot: {where}{error.strerror or error}", StorageError.exit_code)
    if code == INTERRUPTED:
        leave("fastrot: interrupted", INTERRUPTED)
    sys.exit(code or 0)
