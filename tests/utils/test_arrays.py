"""Arrays come back as they were, and what is no file of arrays is refused."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from stun_exp.utils.arrays import packed, read_arrays

ARRAYS = {"0": np.float32([0.1, -2.5]), "11": np.float32([])}


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(packed(ARRAYS))
    found = read_arrays(tmp_path / "a.npz")
    assert found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], ARRAYS[name]) and found[name].dtype == np.float32 for name in ARRAYS)
    assert packed(ARRAYS) == packed(ARRAYS)


def damaged(kind: str) -> bytes:
    whole, buffer = packed(ARRAYS), io.BytesIO()
    np.save(buffer, ARRAYS["0"])
    objects = io.BytesIO()
    np.savez(objects, np.array([{"x": 1}], dtype=object))
    return {
        "empty": b"",
        "text": b"mine",
        "half": whole[: len(whole) // 2],
        "changed": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
        "one array": buffer.getvalue(),
        "objects": objects.getvalue(),
        "pickle": pickle.dumps({"x": 1}),
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "half", "changed", "one array", "objects", "pickle"])
def test_what_is_no_file_of_arrays_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(damaged(kind))
    with pytest.raises(ValueError, match=r"no \.npz file"):
        read_arrays(tmp_path / "a.npz")
