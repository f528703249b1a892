"""The environment variables that tell a process its rank."""

from __future__ import annotations

from pathlib import Path

STORE = "FASTROT_STORE"
"""Environment variable: a file, by which the ranks of one machine find each other."""

Rendezvous = Path | tuple[str, int]
"""Where ranks find each other: those of one machine by a file that does not exist yet, in a folder
of this user alone, for one start; those of several by the first one's name and a port."""


def rank_environment(
    rank: int,
    size: int,
    rendezvous: Rendezvous,
    *,
    local_rank: int | None = None,
    local_size: int | None = None,
) -> dict[str, str]:
    """Return what tells a process that it is a rank; ``world.read_world`` reads it.

    Args:
        rank: of the process.
        size: number of ranks.
        rendezvous: where the ranks find each other.
        local_rank: of the process on its machine; None: there is one machine.
        local_size: ranks of a machine; likewise.
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
