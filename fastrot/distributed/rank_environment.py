"""The environment variables that tell a process its rank."""

from __future__ import annotations

from pathlib import Path

STORE = "FASTROT_STORE"
"""Environment variable: the file by which the ranks of one machine find each other."""

Rendezvous = Path | tuple[str, int]
"""How ranks find each other. On one machine: a file that does not exist yet, used for one start,
in a folder that only this user can enter. On several: the name of the first machine and a port."""


def rank_environment(
    rank: int,
    size: int,
    rendezvous: Rendezvous,
    *,
    local_rank: int | None = None,
    local_size: int | None = None,
) -> dict[str, str]:
    """Return the variables that make a process a rank; ``world.read_world`` reads them.

    Args:
        rank: rank of the process.
        size: number of ranks.
        rendezvous: how the ranks find each other.
        local_rank: index of the process on its machine; None: there is one machine.
        local_size: ranks per machine; None: there is one machine.
    """
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank if local_rank is None else local_rank),
        "LOCAL_WORLD_SIZE": str(size if local_size is None else local_size),
    }
    if isinstance(rendezvous, Path):
        return environment | {STORE: str(rendezvous)}
    host, port = rendezvous
    return environment | {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
