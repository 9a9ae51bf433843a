"""Arrays of numbers in one compressed file (.npz), which NumPy reads: nothing in it is run."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stun_exp.utils.json_files import read_regular

if TYPE_CHECKING:
    import numpy as np


def packed(arrays: "Mapping[str, np.ndarray]") -> bytes:
    """The content of the file with these arrays, by name."""
    import numpy as np

    buffer = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(buffer, **named)
    return buffer.getvalue()


def read_arrays(file: Path) -> "dict[str, np.ndarray]":
    """The arrays in a file, by name; ValueError if it is none as it was written, OSError if it cannot be read."""
    import numpy as np

    content = io.BytesIO(read_regular(file))
    try:
        with np.load(content, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # content that is something else can raise anything
        raise ValueError(f"no .npz file ({error!r:.100})") from error
