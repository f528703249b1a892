"""Which failures of torch are called what, and what ``status.json`` says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastrot.errors import OutOfMemoryError
from fastrot.runs.folder import RunFolder
from fastrot.training.failures import recorded, translate_oom


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemoryError),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (NotImplementedError("of a compiler"), NotImplementedError),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), torch.AcceleratorError),
    ],
)
def test_only_what_is_out_of_memory_is_called_so(
    error: Exception, becomes: type[Exception], tmp_path: Path
) -> None:
    with (
        RunFolder(tmp_path / "run", resume=False) as run,
        pytest.raises(becomes),
        recorded(run),
        translate_oom(),
    ):
        raise error
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == (71 if becomes is OutOfMemoryError else 70)
    assert ("out of memory: " in status["message"]) == (becomes is OutOfMemoryError)
