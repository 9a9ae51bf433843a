"""Files of a model folder: which shard holds which key, tensors in and out, all with errors that name the file."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"
MAPPED = 1 << 30
"""Bytes of a file that may be mapped before it is opened anew."""
PARTIAL = ".partial"
"""Ends the name of a file that is being written."""
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""In the order in which safetensors lays them out, the wide ones first."""


@dataclass(frozen=True)
class Shard:
    """One written file of a checkpoint."""

    name: str
    sha256: str
    size: int
    """Bytes of its tensors."""
    keys: list[str]
    num_experts: int = 0
    """Routed experts of the layer in it; 0 for a dense layer, and for what lies outside the layers."""


def find_shards(folder: Path) -> dict[str, Path]:
    """Key -> file, from the index if there is one; every file is there and whole.

    FileNotFoundError for a missing file, ValueError for a damaged one or another format.
    """
    if (folder / INDEX).is_file():
        weight_map: dict[str, str] = read_json(folder / INDEX).get("weight_map", {})
        missing = sorted({name for name in weight_map.values() if not (folder / name).is_file()})
        if missing:
            raise FileNotFoundError(
                f"{folder / missing[0]}: named by {INDEX} but not there ({len(missing)} such files); download it again"
            )
        for name in sorted(set(weight_map.values())):
            with _open(folder / name):
                pass
        return {key: folder / name for key, name in weight_map.items()}
    file = folder / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: neither {INDEX} nor model.safetensors; only safetensors are read")
    with _open(file) as handle:
        return dict.fromkeys(handle.keys(), file)


def read_tensors(files: Mapping[str, Path], keys: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of `keys`, as they are on disk."""
    by_file: dict[Path, list[str]] = {}
    for key in keys:
        by_file.setdefault(files[key], []).append(key)
    tensors: dict[str, Tensor] = {}
    for file, wanted in by_file.items():
        with _open(file) as handle:
            absent = set(wanted) - set(handle.keys())
            if absent:
                raise ValueError(f"{file}: {min(absent)} is not in it, but {INDEX} says so; download it again")
            tensors |= {key: handle.get_tensor(key) for key in wanted}
    return tensors


def each_tensor(
    files: Mapping[str, Path], groups: Mapping[str, Iterable[str]]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Name after name, what its keys hold, as it is on disk; no more of a file stays in memory than one GiB.

    The tensors are views of their file: what is kept must be copied. ValueError for a key that its file lacks.
    """
    file: Path | None = None
    handle: Any = None
    taken = 0
    for name, keys in groups.items():
        found: dict[str, Tensor] = {}
        for key in keys:
            if files[key] != file or taken > MAPPED:
                handle = None  # before the next is opened: what was read of this one is given back
                file, handle, taken = files[key], _open(files[key]), 0
            try:
                found[key] = handle.get_tensor(key)
            except SafetensorError as error:
                raise ValueError(
                    f"{file}: {key} is not in it, but {INDEX} says so ({error}); download it again"
                ) from error
            taken += found[key].nbytes
        yield name, found


def write_shard(file: Path, tensors: Mapping[str, Tensor]) -> Shard:
    """The shard that is on disk, whole, when this returns; OSError that names the file if it could not be written.

    The file is what safetensors itself would write. Tensors go to it one by one, from whatever device they are on:
    parts of a fused tensor, which share its storage, are never all copied at once.
    """
    rank = {dtype: place for place, dtype in enumerate(_DTYPES)}
    order = sorted(tensors, key=lambda key: (rank[tensors[key].dtype], key))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size = 0
    for key in order:
        tensor = tensors[key]
        end = size + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [size, end]}
        size = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers behind it are aligned

    def content() -> Iterator[Any]:
        yield len(text).to_bytes(8, "little") + text
        for key in order:
            # As bytes by way of a view: NumPy has no bfloat16.
            yield tensors[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

    return Shard(file.name, write_file(file, content()), size, order)


def write_file(file: Path, content: Iterable[Any]) -> str:
    """The sha256 of what is on disk, whole, when this returns; OSError that names the file if it could not be written.

    It goes under a temporary name first: a crash, or a power cut, leaves the file as it was or as it will be.
    """
    partial = file.with_name(file.name + PARTIAL)
    digest = sha256()
    try:
        with partial.open("wb") as handle, ThreadPoolExecutor(1) as beside:
            for piece in content:
                hashed = beside.submit(digest.update, piece)
                handle.write(piece)
                hashed.result()
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, file)
    except OSError as error:
        with suppress(OSError):  # what could not be written may well not be there, nor be removed
            partial.unlink()
        raise not_written(file, error) from error
    sync_folder(file.parent)
    return digest.hexdigest()


def not_written(file: Path, error: OSError) -> OSError:
    """What to tell of a file of a run that could not be written."""
    return OSError(
        f"{file}: could not be written ({error.strerror}); free some space, and the same command with hydra.run.dir of "
        "this run goes on from what is finished; or choose another folder"
    )


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on disk, and not only the files behind them; OSError that names it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise not_written(folder, error) from error
    finally:
        os.close(descriptor)


def digest_of(file: Path) -> str | None:
    """The sha256 of a file; None if it is not there."""
    if not file.is_file():
        return None
    with file.open("rb") as handle:
        return file_digest(handle, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file; ValueError that names it if it is none."""
    try:
        content: dict[str, Any] = from_json(file.read_bytes())  # twice as fast as json
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); download it again") from error
    return content


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file}: truncated or not a safetensors file ({error}); download it again") from error
