"""The environment variables that tell a process its rank."""

from __future__ import annotations

from pathlib import Path

STORE = "FASTROT_STORE"
"""Environment variable: a file, by which the ranks of one machine find each other."""


def rank_environment(
    rank: int,
    size: int,
    store: Path | None,
    *,
    address: tuple[str, int] | None = None,
    local_rank: int | None = None,
    local_size: int | None = None,
) -> dict[str, str]:
    """What tells a process that it is a rank; ``distributed.read_world`` reads it.

    Args:
        rank: of the process.
        size: number of ranks.
        store: ranks of one machine find each other by a file that does not exist yet, in a folder
            of this user alone, for one start.
        address: those of several by the first one's name and a port.
        local_rank: of the process on its machine; None: there is one machine.
        local_size: ranks of a machine; likewise.
    """
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank if local_rank is None else local_rank),
        "LOCAL_WORLD_SIZE": str(size if local_size is None else local_size),
    }
    if store is not None:
        environment[STORE] = str(store)
    if address is not None:
        environment |= {"MASTER_ADDR": address[0], "MASTER_PORT": str(address[1])}
    return environment
