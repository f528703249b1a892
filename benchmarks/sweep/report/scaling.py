"""Scaling efficiency between cells that differ only in ranks and nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastrot.benchmarks.common.harness import Spread
from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep
from fastrot.benchmarks.sweep.report.comparable import changes, flat
from fastrot.benchmarks.sweep.report.figures import Figures, quotient, scaled

COUNTS = ("ranks", "nodes", "batch_per_rank", "train.global_batch")
"""Axes that ranks, nodes and the measured batch represent."""
_FOLLOW = {"train.global_batch", "data.workers", "train.threads", "train.micro_batch"}
"""Settings that follow from the number of ranks unless they are an axis."""

Member = tuple[ReportCell, Figures]


@dataclass(frozen=True)
class Efficiency:
    """Scaling of a cell relative to a smaller one, its base; names are those of ``report.json``.

    ``mode`` is ``weak`` (equal images per step and rank) or ``strong`` (equal images per step);
    ``against`` is ``1 rank`` (or the fewest ranks, as ``4 ranks``), or ``1 node`` with as many
    ranks; an ``efficiency`` of 1 is ideal.
    """

    mode: str
    against: str
    cell: str
    base: str
    ranks: int
    base_ranks: int
    nodes: int
    speedup: Spread
    efficiency: Spread
    settings_that_followed: str | None


def efficiencies(sweep: Sweep) -> list[Efficiency]:
    """Return the efficiency of every cell relative to the fewest ranks, and to one node."""
    families: dict[tuple[Any, ...], dict[tuple[int, int], Member]] = {}
    for cell, figures in sorted(sweep.measured, key=lambda member: not member[0].is_expected):
        batch = figures.global_batch_images
        for mode, images in (("weak", batch / figures.ranks), ("strong", batch)):
            family = families.setdefault((mode, images, *_alike(cell)), {})
            family.setdefault((figures.ranks, figures.nodes), (cell, figures))
    found = []
    for (mode, *_), family in families.items():
        smallest, *others = [family[place] for place in sorted(family)]
        fewest = smallest[1].ranks
        if all(figures.ranks == fewest for _, figures in others):
            continue
        for large in others:
            against = "1 rank" if fewest == 1 else f"{fewest} ranks"
            found.append(efficiency(mode, against, large, smallest))
            nodes = [each for each in family.values() if _is_one_node_of(each[1], large[1])]
            if nodes and (fewest > 1 or nodes[0] is not smallest):
                found.append(efficiency(mode, "1 node", large, nodes[0]))
    return found


def efficiency(mode: str, against: str, large: Member, small: Member) -> Efficiency:
    """Return the scaling efficiency of one cell relative to a smaller one."""
    (cell, figures), (base, base_figures) = large, small
    assert cell.record is not None and base.record is not None
    speedup = quotient(figures.images_per_s, base_figures.images_per_s)
    followed = changes(base.record.config, cell.record.config, {"train.global_batch"})
    return Efficiency(
        mode,
        against,
        cell.key,
        base.key,
        figures.ranks,
        base_figures.ranks,
        figures.nodes,
        speedup,
        scaled(speedup, base_figures.ranks / figures.ranks),
        ", ".join(followed) or None,
    )


def _is_one_node_of(small: Figures, large: Figures) -> bool:
    return small.nodes == 1 < large.nodes and small.ranks * large.nodes == large.ranks


def _alike(cell: ReportCell) -> tuple[Any, ...]:
    """Return what must be equal besides the batch."""
    assert cell.record is not None
    follow = _FOLLOW - set(cell.axes) | {"train.global_batch"}
    config = {key: value for key, value in flat(cell.record.config).items() if key not in follow}
    return cell.environment, cell.record.kind, _other_axes(cell), tuple(sorted(config.items()))


def _other_axes(cell: ReportCell) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((k, v) for k, v in flat(cell.axes).items() if k not in COUNTS))
