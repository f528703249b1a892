"""Compile what the launchers would launch, for several GPUs and without one; print what came out.

A launcher is called with a recorder in the place of each kernel; what it was given is compiled as
Triton's own launch would: addresses and numbers that 16 divides are marked, a 1 is a constant.

Usage: ``python compile_launches.py 80 90 100``; one line of JSON for each kernel and GPU.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import BaseBackend, GPUTarget
from triton.compiler import ASTSource, compile

from fastrot.kernels.batchnorm import triton_kernel as batchnorm
from fastrot.kernels.rotate import triton_kernel as rotate

_TYPES = {
    **{torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"},
    **{torch.float64: "*fp64", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32"},
    torch.int64: "*i64",
}
_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_COPY = re.compile(r"\bcp\.async\S*\.shared\.global \[[^]]*\], \[[^]]*\], (0x[0-9a-f]+)")
_ACCESS = re.compile(r"\b(ld|st)\.global\S*?(?:\.(v[248]))?\.[busf](8|16|32|64)\b")


class Recorder:
    """Stands in for a kernel: ``kernel[grid](*arguments, **constants)`` is kept, not run."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, list[Any], dict[str, Any]]]) -> None:
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            assert all(side > 0 for side in grid) and max(grid[1:], default=1) < 2**16
            self._launches.append((self._kernel, list(arguments), constants))

        return launch


def recorded(module: ModuleType, run: Callable[[], object]) -> list[Any]:
    """The launches of a call into a module."""
    launches: list[tuple[Any, list[Any], dict[str, Any]]] = []
    kernels = {name: each for name, each in vars(module).items() if hasattr(each, "arg_names")}
    for name, kernel in kernels.items():
        setattr(module, name, Recorder(kernel, launches))
    try:
        run()
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)
    return launches


def compiled(
    kernel: Any, arguments: list[Any], constants: dict[str, Any], processor: int
) -> dict[str, Any]:
    """What one launch is compiled to, in numbers."""
    constants = dict(constants)
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages") if key in constants}
    signature, attributes = {}, {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name], aligned = _TYPES[value.dtype], value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            signature[name], aligned = "fp32", False
        elif kernel.params[place].do_not_specialize:
            signature[name], aligned = "i32", False
        elif value == 1:
            signature[name], aligned = "constexpr", False
            constants[name] = 1
        else:
            signature[name], aligned = "i32", value % 16 == 0
        if aligned:
            attributes[(place,)] = BaseBackend.parse_attr("D")
    signature.update({name: "constexpr" for name in constants})
    source = ASTSource(kernel, signature, constants, attributes)
    result = compile(source, target=GPUTarget("cuda", processor, 32), options=options)
    return {
        "kernel": kernel.__name__,
        "processor": processor,
        **accesses(result.asm["ptx"]),
        **resources(result.asm["cubin"]),
        "shared": result.metadata.shared,
        "wide_offsets": bool(re.search(r"arith\.muli .*: i64", result.asm["ttir"])),
        "barriers": result.asm["ptx"].count("bar.sync"),
        "loop_lines": len(in_loops(result.asm["ptx"])),
        "loop_barriers": sum("bar.sync" in line for line in in_loops(result.asm["ptx"])),
    }


def accesses(ptx: str) -> dict[str, dict[str, int]]:
    """How often a thread's loads and stores of global memory have which width, in bytes."""
    found: dict[str, dict[str, int]] = {"ld": {}, "st": {}}
    for kind, vector, bits in _ACCESS.findall(ptx):
        width = str(int(vector[1:] or 1) * int(bits) // 8) if vector else str(int(bits) // 8)
        found[kind][width] = found[kind].get(width, 0) + 1
    for size in _COPY.findall(ptx):
        width = str(int(size, 16))
        found["ld"][width] = found["ld"].get(width, 0) + 1
    return {"loads": found["ld"], "stores": found["st"]}


def in_loops(ptx: str) -> list[str]:
    """The lines between a label and a later jump back to it."""
    lines = ptx.splitlines()
    labels = {line.split(":")[0]: place for place, line in enumerate(lines) if line[:2] == "$L"}
    inside: set[int] = set()
    for place, line in enumerate(lines):
        jump = re.search(r"\bbra\S*\s+(\$L\w+)", line)
        if jump and labels[jump.group(1)] < place:
            inside.update(range(labels[jump.group(1)], place))
    return [lines[place] for place in sorted(inside)]


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes that it spills."""
    path = Path("launch.cubin")  # in this process's own folder
    path.write_bytes(cubin)
    command = [str(_TOOL), "--dump-resource-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key.lower(): int(number) for key, number in re.findall(r"(\w+):(\d+)", text)}
    return {"registers": usage["reg"], "spilled": usage["stack"] + usage["local"]}


def batchnorm_launches(dtype: torch.dtype, rows: int, channels: int) -> list[Any]:
    """Both passes forward and backward, with and without what is optional."""

    def run() -> None:
        x, y, dx = (torch.empty(rows, channels, dtype=dtype, device="meta") for _ in range(3))
        mask = torch.empty(rows, -(-channels // 8), dtype=torch.uint8, device="meta")
        vectors = [torch.empty(channels, device="meta") for _ in range(4)]
        parts = batchnorm.moments(x)
        batchnorm.merge(parts)
        statistics = batchnorm.finish(parts, *vectors, 0.1, 1e-5)
        for added in (None, y):
            batchnorm.normalise(x, statistics, added, True, y, mask)
            batchnorm.normalise_frozen(x, *vectors, 1e-5, added, True, y)
            sums = batchnorm.gradient_sums(y, x, mask, statistics)
            bent = batchnorm.coefficients(sums, statistics, *vectors[:2])
            batchnorm.gradient(y, x, mask, statistics, bent, dx, added)

    return recorded(batchnorm, run)


def rotate_launches(dtype: torch.dtype, channels: int) -> list[Any]:
    """A batch of 224 pixels."""

    def run() -> None:
        n, side = 64, 224
        images = torch.empty(n, side, side, 3, dtype=torch.uint8, device="meta")
        turns = torch.empty(n, 4, dtype=torch.uint8, device="meta")
        flips = torch.empty(n, dtype=torch.bool, device="meta")
        table = torch.empty(256, 3, dtype=dtype, device="meta")
        views = torch.empty(n * 4, side, side, channels, dtype=dtype, device="meta")
        rotate.rotate_views(images, turns, flips, table, views)

    return recorded(rotate, run)


def cases() -> Iterator[tuple[str, list[Any]]]:
    """All launches, by what they are launched for."""
    yield "narrow", batchnorm_launches(torch.bfloat16, 256 * 112 * 112, 64)
    yield "wide", batchnorm_launches(torch.float16, 256 * 7 * 7, 2048)
    yield "odd", batchnorm_launches(torch.float16, 33, 65)
    yield "one", batchnorm_launches(torch.float32, 1, 1)  # numbers that are 1 become constants
    yield "single", batchnorm_launches(torch.float32, 256 * 56 * 56, 256)
    for channels in (3, 4):
        yield "rotate", rotate_launches(torch.bfloat16, channels)


def main() -> None:
    """Compile all of it."""
    for case, launches in cases():
        for launch in launches:
            for processor in map(int, sys.argv[1:]):
                print(json.dumps({"case": case, **compiled(*launch, processor)}), flush=True)


if __name__ == "__main__":
    main()
