"""Which implementation runs: what is forced runs or fails, and nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastrot.kernels import dispatch
from fastrot.kernels.dispatch import VARIABLE, KernelUnavailableError, choose

NATIVE = dispatch.native_problem() is None


def test_unforced_takes_the_fastest_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose("rotate_views", "cpu").implementation == ("cpp" if NATIVE else "reference")
    decode = choose("decode_jpeg").implementation
    assert decode == ("reference" if dispatch.decode_problem() else "cpp")
    if dispatch.unavailable("rotate_views", "triton", "cuda") is None:
        assert choose("rotate_views", "cuda").implementation == "triton"


def test_unforced_on_another_device_takes_the_reference_and_says_why() -> None:
    choice = choose("rotate_views", "mps")
    assert choice.implementation == "reference"
    assert "not cpp: the inputs are on mps" in choice.reason


def test_reference_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "reference")
    for operation, device in (
        ("rotate_views", "cpu"),
        ("rotate_views", "cuda"),
        ("decode_jpeg", "cpu"),
    ):
        choice = choose(operation, device)
        assert (choice.implementation, choice.reason) == ("reference", f"forced by {VARIABLE}")


@pytest.mark.parametrize(
    ("name", "operation", "device", "message"),
    [
        (
            "cuDNN",
            "rotate_views",
            "cpu",
            "'cuDNN' is not an implementation; choose reference, cpp",
        ),
        ("cuda", "rotate_views", "cuda", "rotate_views has no such implementation; it has triton"),
        ("triton", "rotate_views", "cpu", "the inputs are on cpu, triton takes a CUDA device"),
        ("cpp", "rotate_views", "cuda", "the inputs are on cuda, cpp takes host memory"),
    ],
)
def test_what_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, operation: str, device: str, message: str
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(KernelUnavailableError, match=message):
        choose(operation, device)
    assert any(message in str(line) for line in dispatch.plan())


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_kernel_of_the_device_leaves_decoding_alone(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    unforced = choose("decode_jpeg")
    monkeypatch.setenv(VARIABLE, name)
    assert choose("decode_jpeg") == unforced


def test_plan_covers_every_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    lines = dispatch.plan()
    assert {line.operation for line in lines} == {
        *("rotate_views", "decode_jpeg", "walk_jpeg", "crop_decode"),
        *("scalar_products", "batch_norm"),
    }
    assert all(line.implementation in dispatch.NAMES and line.reason for line in lines)


def test_dispatch_and_decode_import_no_torch() -> None:
    code = (
        "import sys, fastrot.kernels.dispatch as d, fastrot.kernels.decode.op; d.plan();"
        "print(sorted({'torch', 'PIL', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "[]"
