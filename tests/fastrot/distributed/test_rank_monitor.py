"""What failures of ranks and devices are called, by torch's own words (the rest: tests/ranks)."""

from __future__ import annotations

import pytest

from fastrot.distributed.rank_monitor import lost_ranks_named
from fastrot.errors import DeviceFailedError, OutOfMemoryError, RankLostError
from fastrot.training.failures import translate_device_failure, translate_oom

WORDS = [
    (
        "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:1950",
        RankLostError,
    ),
    ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv", RankLostError),
    ("NCCL communicator was aborted on rank 3. Original reason: watchdog", RankLostError),
    ("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited", RankLostError),
    ("CUDA error: uncorrectable ECC error encountered", DeviceFailedError),
    (
        "CUDA error: an illegal memory access was encountered\\nCUDA kernel errors might be",
        DeviceFailedError,
    ),
    ("CUDA error: unspecified launch failure", DeviceFailedError),
    (
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory",
        OutOfMemoryError,
    ),
    ("mat1 and mat2 shapes cannot be multiplied (4x5 and 6x7)", RuntimeError),
]


@pytest.mark.fault(32)
@pytest.mark.parametrize(("words", "becomes"), WORDS)
def test_words_of_torch_get_their_type(words: str, becomes: type[Exception]) -> None:
    with (
        pytest.raises(becomes) as caught,
        lost_ranks_named(0, 2),
        translate_oom(),
        translate_device_failure(),
    ):
        raise RuntimeError(words)
    assert type(caught.value) is becomes
    if becomes is not RuntimeError:
        assert "\n" not in str(caught.value)


def test_one_rank_has_no_others_to_lose() -> None:
    with pytest.raises(RuntimeError, match="gloo") as caught, lost_ranks_named(0, 1):
        raise RuntimeError("gloo: connection closed by peer")
    assert type(caught.value) is RuntimeError
