"""Arrays of numpy's files, mapped."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST_HEADER = 1 << 16  # ours take 128 bytes
_MAGIC = b"\x93NUMPY"


def map_array(path: str | Path) -> NDArray[Any]:
    """Map the array of a .npy file, whatever its size; no object in it is unpickled.

    numpy takes memory for a header of the length that the file states, up to 4 GB, before it reads a byte of it.

    Raises:
        ValueError, and what else numpy raises: the file is no array.
    """
    with open(path, "rb") as file:
        start = file.read(12)
    stated = int.from_bytes(start[8:10] if start[6:7] <= b"\x01" else start[8:12], "little")
    if start.startswith(_MAGIC) and stated > LONGEST_HEADER:
        raise ValueError(f"it states a header of {stated} bytes")
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
