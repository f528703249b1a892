"""``fastrot prepare``, ``inspect`` and ``verify``: commands on .beton files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.options import AsJson, FollowSymlinks, SkipOrFail
from fastrot.cli.show import INTERRUPTED, fill, leave, show

app = typer.Typer()


@app.command("prepare")
def prepare_file(
    source: Annotated[Path, typer.Argument(help="Folder of the dataset.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.beton", help="File to write.")],
    kind: Annotated[
        str,
        typer.Option(
            metavar="auto|folder|cifar|voc07|coco|imagenet|places205|inat18",
            help="Layout of the source (auto: detected).",
        ),
    ] = "auto",
    split: Annotated[
        str | None, typer.Option(help="Split to convert, if there are several.")
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(help="Shrink images whose longest side exceeds this, in pixels.")
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            help="Refuse images with more pixels (default: 67108864; with --max-side: 268435456)."
        ),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(help="JPEG quality, 1 to 100 (default: 90).")
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy JPEGs that need no change without decoding them.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes (default: one per usable core).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume an interrupted conversion.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.beton.")] = False,
    seed: Annotated[int, typer.Option(help="Seed for the order of the images in the file.")] = 0,
    page_size: Annotated[
        int | None, typer.Option(help="Page size in bytes, a power of two.")
    ] = None,
    follow_symlinks: FollowSymlinks = False,
    on_bad_sample: SkipOrFail = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report what would be done.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Convert a dataset to a .beton file with a manifest of checksums."""
    options = locals()
    from fastrot.data.prepare.convert import prepare
    from fastrot.data.prepare.options import PrepareRequest

    del options["json"]
    request = fill(
        PrepareRequest, options, on_bad_sample=on_bad_sample or "fail", progress=not json
    )
    try:
        show(prepare(request), json)
    except KeyboardInterrupt:
        leave("fastrot: interrupted; add --resume to the same command to continue", INTERRUPTED)


@app.command("inspect")
def inspect_file(
    file: Annotated[Path, typer.Argument(metavar="FILE.beton", help="File to inspect.")],
    json: AsJson = False,
) -> None:
    """Show the contents of a .beton file."""
    from fastrot.data.beton.inspect import inspect

    show(inspect(file), json)


@app.command("verify")
def verify_file(
    file: Annotated[Path, typer.Argument(metavar="FILE.beton", help="File to check.")],
    workers: Annotated[
        int | None, typer.Option(help="Threads (default: one per usable core).")
    ] = None,
    json: AsJson = False,
) -> None:
    """Check the structure and checksums of a .beton file and strictly decode every image."""
    from fastrot.data.beton.verify import verify

    show(verify(file, workers=workers, progress=not json), json)
