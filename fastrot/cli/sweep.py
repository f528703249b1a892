"""``fastrot bench sweep``: a grid of measurements, here or on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.options import AsJson, SweepOverrides
from fastrot.cli.show import INTERRUPTED, fill, show

app = typer.Typer()


@app.command("sweep")
def bench_sweep(
    sweep: Annotated[
        str,
        typer.Argument(metavar="SWEEP.yaml", help="A YAML file, or the name of a shipped sweep."),
    ],
    data: Annotated[
        Path | None, typer.Option(help="Images to read (default: the recipe's).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the records (default: runs/ and the sweep's name)."),
    ] = None,
    cluster: Annotated[
        str, typer.Option(metavar="slurm|local|debug", help="Where to run the cells.")
    ] = "local",
    overrides: SweepOverrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the cells.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also retry cells that are known to fail.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Measure every cell of a grid that has no record yet; fastrot report shows them."""
    options = locals()
    from fastrot.benchmarks.sweep.run import SweepRequest, run_sweep

    del options["json"]
    request = fill(SweepRequest, options, progress=not json)
    try:
        summary = run_sweep(request)
    except KeyboardInterrupt:
        print("finished cells are kept; the same command continues", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    show(summary, json)
