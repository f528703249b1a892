from __future__ import annotations

from pathlib import Path

import pytest

from fastrot.benchmarks.sweep.settings import cells_of, load_sweep, split_overrides
from fastrot.errors import UsageError
from fastrot.system.yaml_config import shipped_names

GRID = """
name: tiny
recipe: digits
set: {model.width: 8}
grid:
  ranks: [1, 2]
  batch_per_rank: [4, 8]
exclude: [{ranks: 2, batch_per_rank: 8}]
slurm: {partition: cpu}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", shipped_names("configs/sweep"))
def test_every_shipped_sweep_spans_cells(name: str) -> None:
    cells = cells_of(load_sweep(name), data=Path("some.beton"))
    assert len(cells) >= 6
    assert all(cell.config.data.train == str(Path("some.beton").absolute()) for cell in cells)


def test_the_shipped_weak_scaling_keeps_the_batch_of_a_rank_and_whole_nodes() -> None:
    cells = cells_of(load_sweep("weak_scaling"), data=Path("x"))
    assert {cell.config.train.global_batch / cell.ranks for cell in cells} == {256}
    found = [(cell.nodes, cell.ranks) for cell in cells]
    assert found == [(1, 1), (1, 2), (1, 4), (1, 8), (2, 16), (4, 32)]


def test_the_grid_without_what_is_excluded(tmp_path: Path) -> None:
    cells = cells_of(load_sweep(write(tmp_path, GRID)))
    found = [
        (cell.ranks, cell.config.train.global_batch, cell.config.model.width) for cell in cells
    ]
    assert found == [(1, 4, 8), (1, 8, 8), (2, 8, 8)]
    assert cells[0].title == "ranks=1 batch_per_rank=4"
    assert cells[0].config.data.val is None  # nothing is validated


def test_overrides_of_the_sweep_and_of_its_cells(tmp_path: Path) -> None:
    given = ["seconds=0.5", "slurm.partition=gpu", "model.width=16", "train.seed=3"]
    own, rest = split_overrides(given)
    assert (own, rest) == (given[:2], given[2:])
    sweep = load_sweep(write(tmp_path, GRID), own)
    assert (sweep.seconds, sweep.slurm.partition) == (0.5, "gpu")
    config = cells_of(sweep, overrides=rest)[0].config
    assert (config.model.width, config.train.seed) == (16, 3)


def test_an_axis_cannot_be_overridden(tmp_path: Path) -> None:
    text = GRID.replace("batch_per_rank: [4, 8]", "train.seed: [1, 2]").replace(
        "batch_per_rank: 8", "train.seed: 2"
    )
    with pytest.raises(UsageError, match=r"train\.seed is an axis"):
        cells_of(load_sweep(write(tmp_path, text)), overrides=["train.seed=3"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch_per_rank: [4, 8]", "data.worker: [1]"), "'data.worker'"),
        (("batch_per_rank: [4, 8]", "data.workers: []"), "grid.data.workers"),
        (("{ranks: 2, batch_per_rank: 8}", "{nodes: 2}"), "not an axis of the grid: nodes"),
        (("{ranks: 2, batch_per_rank: 8}", "{}"), "every cell"),
        (("name: tiny", "name: ../tiny"), "name='../tiny'"),
        (("name: tiny", "name: tiny\nrepeat: 3"), "nearest known key is 'repeats'"),
        (("slurm: {partition: cpu}", "slurm: {gpus: 1}"), "slurm.gpus"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        load_sweep(write(tmp_path, GRID.replace(*change)))


def test_ranks_that_cannot_be_shared_between_nodes(tmp_path: Path) -> None:
    text = GRID.replace("batch_per_rank: [4, 8]", "nodes: [2]").replace(
        "{ranks: 2, batch_per_rank: 8}", "{ranks: 2}"
    )
    with pytest.raises(UsageError, match="1 ranks on 2 nodes"):
        cells_of(load_sweep(write(tmp_path, text)))


def test_a_sweep_without_images_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data"):
        cells_of(load_sweep(write(tmp_path, GRID.replace("recipe: digits\n", ""))))
