"""Every Triton kernel compiles for the GPUs of interest, here without one, to what was meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REGISTERS, SHARED, THREADS = 65_536, 160 * 1024, 256  # of a processor, of a program
PASSES = ("moments_kernel", "normalise_kernel", "sums_kernel", "gradient_kernel")
BETWEEN = ("merge_kernel", "finish_kernel", "coefficients_kernel")


@pytest.fixture(
    scope="module",
    params=[90, *(pytest.param(each, marks=pytest.mark.chaos) for each in (80, 100))],
)
def launches(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each launch was compiled to; in a process without Triton's interpreter."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("compile_launches.py")
    folder = tmp_path_factory.mktemp("compiled")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", str(script), str(request.param)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_kernel_compiles(launches: list[dict[str, Any]]) -> None:
    assert {each["kernel"] for each in launches} == {
        *(*PASSES, *BETWEEN, "_rotate_views_kernel", "_rotate_pixels_kernel")
    }


@pytest.mark.slow
def test_half_precision_moves_16_bytes_at_once(launches: list[dict[str, Any]]) -> None:
    for launch in launches:
        if launch["case"] in ("narrow", "wide") and launch["kernel"] in PASSES:
            loads, stores = launch["loads"], launch["stores"]
            assert set(loads) <= {"16", "1"}, launch
            # One byte of the mask for 16 bytes of dy.
            assert loads.get("1", 0) <= 4, launch
            if launch["kernel"] in ("normalise_kernel", "gradient_kernel"):
                assert set(stores) <= {"16", "1"} and stores["16"] % 4 == 0, launch
                assert stores.get("1", 0) <= 4, launch
        if launch["case"] == "rotate":
            assert set(launch["stores"]) == {"16"}, launch


@pytest.mark.slow
def test_nothing_is_spilled_and_tiles_stay_in_their_threads(launches: list[dict[str, Any]]) -> None:
    for launch in launches:
        if launch["case"] not in ("narrow", "wide", "rotate"):
            continue
        assert launch["spilled"] == 0, launch
        if launch["kernel"] in ("normalise_kernel", "gradient_kernel"):
            assert launch["barriers"] == launch["shared"] == 0, launch
        if launch["kernel"] in ("moments_kernel", "sums_kernel"):
            # For a copy that has come, and before the next one; sums stay in their threads.
            assert launch["loop_lines"] > 0 and launch["loop_barriers"] <= 2, launch
            # triton_kernel._MOMENTS_PROGRAMS and _SUMS_PROGRAMS count on so many at once.
            at_once = 2 if launch["kernel"] == "moments_kernel" else 3
            assert launch["registers"] * THREADS * at_once <= REGISTERS, launch
            assert launch["shared"] * at_once <= SHARED, launch


@pytest.mark.slow
def test_a_batch_may_have_more_elements_than_32_bits_count(launches: list[dict[str, Any]]) -> None:
    passes = [each for each in launches if each["kernel"] in PASSES and each["case"] != "one"]
    assert passes and all(launch["wide_offsets"] for launch in passes)
