"""The compiled extension; dtypes of arrays are exact, nothing is converted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

built_with_decode: bool
"""Whether libjpeg-turbo's headers were there when the extension was built."""

libjpeg_version: str | None
"""Version of those headers, e.g. "2.1.5"; None without decode."""

def rotate_views(images: Any, turns: Any, flips: Any, table: Any, views: Any, threads: int) -> None:
    """Fill ``views`` of shape (N*V, S, S, C); table and views both int16 or both int32 (bits)."""

def decode_jpeg(data: Any, max_pixels: int) -> NDArray[np.uint8]:
    """Pixels of shape (H, W, 3); ValueError with libjpeg's words for anything but a sound file."""
