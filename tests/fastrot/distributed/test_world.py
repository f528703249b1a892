"""What a process is told of its ranks, and what one says to itself (two: tests/ranks)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastrot.distributed.rank_environment import rank_environment
from fastrot.distributed.world import World, joined, pick_device, read_world
from fastrot.errors import MismatchError, RankLostError


def test_the_launchers_environment_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert read_world() == World()
    for name, value in rank_environment(1, 3, tmp_path / "store").items():
        monkeypatch.setenv(name, value)
    assert read_world() == World(rank=1, size=3, local_rank=1, local_size=3)
    assert not read_world().is_main


def test_one_rank_needs_nobody() -> None:
    world = World()
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(world.sum(values.clone()), values)
    assert torch.equal(world.gather(values), values[None])
    assert world.gather_json({"a": [1]}) == [{"a": [1]}]
    with joined(world, torch.device("cpu")) as monitor, monitor.explained():
        monitor.alive()
        with pytest.raises(RankLostError, match="as it is"):
            raise RankLostError("as it is")


def test_two_ranks_need_a_rendezvous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(rank=1, size=2, local_rank=1, local_size=2)
    monkeypatch.setenv("FASTROT_STORE", str(tmp_path / "missing" / "store"))
    with (
        pytest.raises(MismatchError, match="its folder does not exist"),
        joined(world, torch.device("cpu")),
    ):
        pass
    monkeypatch.delenv("FASTROT_STORE")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(RankLostError, match=r"no rendezvous of 2 ranks at \?:\?"),
        joined(world, torch.device("cpu")),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    assert pick_device("auto", World()) == torch.device("cpu")
    with pytest.raises(MismatchError, match="sees no GPU"):
        pick_device("cuda", World())
