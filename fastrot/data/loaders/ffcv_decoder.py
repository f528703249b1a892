"""An image decoder for FFCV's pipeline that uses given crop boxes and reports failures.

FFCV's own decoders draw boxes from numba's unseeded generator and ignore the return code of
``imdecode``, so a damaged sample shows the pixels of an earlier one. This decoder reads the box of
each sample from a table and writes its status into another.

The compiled code has the addresses of the tables. Captured arrays would not work: numba freezes
those of up to 1 MB as constants, but boxes change every epoch.

Shapes: the dataset has n samples; a crop has side S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.libffcv import ctypes_imdecode, resize_crop
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_JPEG = 0

NOT_DECODED, DECODED, FAILED = 0, 1, 2
"""Status of a sample in the current epoch."""


@intrinsic  # type: ignore[untyped-decorator]
def _as_pointer(_context: Any, address: Any) -> Any:
    """Turn an integer into the ``void *`` that ``carray`` takes."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.uintp), codegen


class BoxDecoder(Operation):  # type: ignore[misc]
    """Decodes an image, crops its box and resizes that to S x S with OpenCV's INTER_AREA.

    Args:
        size: S, pixels.
        num_samples: n.

    Attributes:
        boxes: left, top, width and height of each sample's box, shape (n, 4), int32.
        status: NOT_DECODED, DECODED or FAILED for each sample, shape (n,), int32.
    """

    def __init__(self, size: int, num_samples: int) -> None:
        super().__init__()
        self.size = size
        self.boxes: NDArray[np.int32] = np.zeros((num_samples, 4), dtype=np.int32)
        # Not uint8: FFCV's memory manager declares numba's shared type of uint8 vectors read-only
        # for the whole process. No compiled function here takes one as an argument, either.
        self.status: NDArray[np.int32] = np.zeros(num_samples, dtype=np.int32)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """Declare that a batch has rows of shape (S, S, 3), uint8."""
        shape, dtype = (self.size, self.size, 3), np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that FFCV compiles, which fills the rows of one batch."""
        read = self.memory_read
        each = Compiler.get_iterator()
        resize = Compiler.compile(resize_crop)
        count = len(self.status)
        boxes_address = np.uintp(self.boxes.ctypes.data)
        status_address = np.uintp(self.status.ctypes.data)

        def decode(indices, rows, metadata, storage):  # type: ignore[no-untyped-def]
            boxes = carray(_as_pointer(boxes_address), (count, 4), np.int32)
            status = carray(_as_pointer(status_address), (count,), np.int32)
            for row in each(len(indices)):
                sample = indices[row]
                record = metadata[sample]
                data = read(record["data_ptr"], storage)
                height, width = np.uint32(record["height"]), np.uint32(record["width"])
                left, top = boxes[sample, 0], boxes[sample, 1]
                right, bottom = left + boxes[sample, 2], top + boxes[sample, 3]
                size = np.int64(height) * np.int64(width) * 3
                failed = left < 0 or top < 0 or right > width or bottom > height
                if record["mode"] == _JPEG:
                    # Scratch memory of the image's own size: FFCV's decoders keep a buffer of the
                    # largest size for every row of every batch in flight.
                    pixels = np.empty(size, dtype=np.uint8)
                    # Source, height, width; target, height, width; offset, scale, flags.
                    code = ctypes_imdecode(
                        data.ctypes.data, data.size, height, width,
                        pixels.ctypes.data, height, width, 0, 0, 1, 1, False, False,
                    )  # fmt: skip
                    failed = failed or code != 0
                else:
                    pixels = data
                    failed = failed or data.size != size
                if failed:
                    rows[row] = 0
                    status[sample] = FAILED
                else:
                    image = pixels.reshape(height, width, 3)
                    resize(image, top, bottom, left, right, rows[row])
                    status[sample] = DECODED
            return rows[: len(indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode
