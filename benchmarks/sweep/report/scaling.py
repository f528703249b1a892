"""Scaling efficiency: between cells that differ in ranks and nodes, and in nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastrot.benchmarks.common.harness import Spread
from fastrot.benchmarks.sweep.report.cells import ReportCell, Sweep
from fastrot.benchmarks.sweep.report.comparable import changed, flat, told
from fastrot.benchmarks.sweep.report.figures import Figures, quotient, scaled

Mode = Literal["weak", "strong"]

_COUNTS = {"ranks", "nodes", "batch_per_rank", "train.global_batch"}
"""Axes that ranks, nodes and the batch that was measured stand for."""
_FOLLOW = {"train.global_batch", "data.workers", "train.threads", "train.micro_batch"}
"""Settings that follow from the number of ranks where they are no axis."""


@dataclass(frozen=True)
class Efficiency:
    """How well a cell scales from another one.

    Attributes:
        mode: weak: as many images a step and rank; strong: as many images a step.
        against: what it is compared with: one rank, or one node.
        cell: key of the larger one.
        base: key of the smaller one.
        ranks: of the larger.
        base_ranks: of the smaller.
        nodes: of the larger.
        speedup: times the rate of the smaller.
        efficiency: speedup over how many times the ranks; 1 is ideal.
        followed: settings that followed from the ranks, as text.
    """

    mode: Mode
    against: Literal["1 rank", "1 node"]
    cell: str
    base: str
    ranks: int
    base_ranks: int
    nodes: int
    speedup: Spread
    efficiency: Spread
    followed: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **{name: getattr(self, name) for name in ("mode", "against", "cell", "base", "ranks")},
            **{"base_ranks": self.base_ranks, "nodes": self.nodes},
            "speedup": self.speedup.to_json(),
            "efficiency": self.efficiency.to_json(),
            "settings_that_followed": self.followed or None,
        }


@dataclass(frozen=True)
class Series:
    """Cells of one kind of scaling, by their ranks.

    Attributes:
        mode: weak or strong.
        cells: with their figures, the fewest ranks first.
    """

    mode: Mode
    cells: Sequence[tuple[ReportCell, Figures]]


def scaling_series(sweep: Sweep) -> list[Series]:
    """All families of at least two cells that scale from the fewest ranks among them."""
    families: dict[tuple[Any, ...], dict[tuple[int, int], tuple[ReportCell, Figures]]] = {}
    for cell, figures in sorted(sweep.measured(), key=lambda found: not found[0].is_expected):
        alike, place = _alike(cell), (figures.ranks, figures.nodes)
        kinds: list[tuple[Mode, float]] = [
            ("weak", figures.global_batch / figures.ranks),
            ("strong", figures.global_batch),
        ]
        for mode, batch in kinds:  # of two records of one place, the one that is asked for now
            families.setdefault((mode, batch, *alike), {}).setdefault(place, (cell, figures))
    return [
        Series(key[0], [members[place] for place in sorted(members)])
        for key, members in families.items()
        if len({ranks for ranks, _ in members}) > 1
    ]


def efficiencies(series: Sequence[Series]) -> list[Efficiency]:
    """Of every cell in a series against one rank, and against one node as full as its own."""
    return [found for each in series for found in _efficiencies(each)]


def obstacle(sweep: Sweep) -> str:
    """In what cells of other ranks differ besides; empty if there are none on the same axes."""
    places: dict[tuple[Any, ...], list[ReportCell]] = {}
    for cell, _ in sweep.measured():
        places.setdefault((cell.environment, _other_axes(cell)), []).append(cell)
    for first, *others in places.values():
        for other in others:
            assert first.record is not None and other.record is not None
            changes = changed(first.record.config, other.record.config, _FOLLOW - set(first.axes))
            if changes:
                return f"{sweep.label(first)} and {sweep.label(other)} differ in {told(changes)}"
    return ""


def by_cell(found: Sequence[Efficiency]) -> dict[str, list[Efficiency]]:
    """Efficiencies by the key of the larger cell."""
    cells: dict[str, list[Efficiency]] = {}
    for each in found:
        cells.setdefault(each.cell, []).append(each)
    return cells


def _efficiencies(series: Series) -> Iterator[Efficiency]:
    one_rank = next((m for m in series.cells if m[1].ranks == 1), None)
    for cell, figures in series.cells:
        if one_rank is not None and figures.ranks > 1:
            yield _against(series.mode, "1 rank", (cell, figures), one_rank)
        one_node = next((m for m in series.cells if _is_one_node_of(m[1], figures)), None)
        if one_node is not None and one_node is not one_rank:
            yield _against(series.mode, "1 node", (cell, figures), one_node)


def _is_one_node_of(small: Figures, large: Figures) -> bool:
    return small.nodes == 1 < large.nodes and small.ranks * large.nodes == large.ranks


def _against(
    mode: Mode,
    against: Literal["1 rank", "1 node"],
    large: tuple[ReportCell, Figures],
    small: tuple[ReportCell, Figures],
) -> Efficiency:
    (cell, figures), (base, base_figures) = large, small
    assert cell.record is not None and base.record is not None
    speedup = quotient(figures.images_per_s, base_figures.images_per_s)
    return Efficiency(
        mode=mode,
        against=against,
        cell=cell.key,
        base=base.key,
        ranks=figures.ranks,
        base_ranks=base_figures.ranks,
        nodes=figures.nodes,
        speedup=speedup,
        efficiency=scaled(speedup, base_figures.ranks / figures.ranks),
        followed=told(
            changed(base.record.config, cell.record.config, without={"train.global_batch"})
        ),
    )


def _alike(cell: ReportCell) -> tuple[Any, ...]:
    """What has to be the same besides the batch."""
    assert cell.record is not None
    follow = _FOLLOW - set(cell.axes) | {"train.global_batch"}
    config = {key: value for key, value in flat(cell.record.config).items() if key not in follow}
    kind = cell.record.kind
    return cell.environment, kind, _other_axes(cell), tuple(sorted(config.items()))


def _other_axes(cell: ReportCell) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((k, v) for k, v in flat(cell.axes).items() if k not in _COUNTS))
