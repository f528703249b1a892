"""The confusion matrix of the four rotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrot.distributed.world import World
from fastrot.report.charts.heat import Heat, heat_chart
from fastrot.report.html.blocks import Figure, Section, Table
from fastrot.report.html.text import number, percent
from fastrot.report.run.files import RunFiles
from fastrot.report.run.network import Images, Network, chosen, open_reader
from fastrot.system.console import Say
from fastrot.training.validate import validate

NAMES = ("0°", "90°", "180°", "270°")
_MOST_IMAGES = 2000


def confusion_section(
    run: RunFiles, network: Network | None, images: Images | None, why: str, say: Say
) -> Section:
    """Show the matrix of the newest checkpoint on held-out images, or else the last recorded one.

    Args:
        run: files of the run.
        network: network of the newest checkpoint; None: not available.
        images: images of the run; None: they cannot be read.
        why: what is missing; empty if nothing is.
        say: called with each line for the user.
    """
    section = Section("confusion", "Confusion matrix")
    if network is not None and images is not None and images.held_out:
        ids = chosen(images, network, _MOST_IMAGES)
        say(f"confusion matrix: {len(ids):,} {images.name}")
        with open_reader(images, ids, network, say) as loader:
            result = validate(
                network.model, network.task, loader, None, device=network.device, world=World()
            )
        section.lead = (
            f"The checkpoint at step {network.step:,} on {len(ids):,} of "
            f"{len(images.samples):,} held-out images, with all four views of each: "
            f"{percent(100 * result.accuracy)} correct (chance: {percent(25)})."
        )
        section.blocks.append(_figure(result.confusion.tolist()))
        return section
    section.missing.append(f"confusion matrix of the newest checkpoint: {why}")
    for record in reversed(run.validation):
        counts = record.get("confusion")
        if _is_matrix(counts):
            step = number(record, "step")
            at = "" if step is None else f" after step {step:,.0f}"
            total = sum(map(sum, counts))
            right = sum(counts[i][i] for i in range(len(NAMES)))
            section.lead = (
                f"As recorded by the last validation{at}: {percent(100 * right / max(1, total))} "
                f"of {total:,} views correct (chance: {percent(25)})."
            )
            section.blocks.append(_figure(counts))
            break
    return section


def _figure(counts: Sequence[Sequence[int]]) -> Figure:
    shares = [[100 * count / max(1, sum(row)) for count in row] for row in counts]
    said = "; ".join(
        f"{name} is predicted as {name} for {row[i]:.1f} % of its views"
        for i, (name, row) in enumerate(zip(NAMES, shares, strict=True))
    )
    rows = [
        [name, *(f"{count:,} ({share:.1f} %)" for count, share in zip(c, s, strict=True))]
        for name, c, s in zip(NAMES, counts, shares, strict=True)
    ]
    cells = [
        [
            Heat(f"{share:.1f} %", f"true turn {true}, predicted {name}: {count:,}", share / 100)
            for name, count, share in zip(NAMES, c, s, strict=True)
        ]
        for true, c, s in zip(NAMES, counts, shares, strict=True)
    ]
    return Figure(
        "True turn and predicted turn",
        heat_chart(cells, NAMES, NAMES, row_title="true turn", column_title="predicted turn"),
        f"Confusion matrix of the four turns: {said}.",
        Table(["true turn", *(f"predicted {name}" for name in NAMES)], rows),
        note="Turns are counter-clockwise; every row has the same number of views.",
    )


def _is_matrix(counts: Any) -> bool:
    return (
        isinstance(counts, list)
        and len(counts) == len(NAMES)
        and all(isinstance(row, list) and len(row) == len(NAMES) for row in counts)
        and all(type(cell) is int and 0 <= cell < 2**53 for row in counts for cell in row)
    )
