"""Files of a model folder: which shard holds which key, tensors in and out, all with errors that name the file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"


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


def write_shard(file: Path, tensors: Mapping[str, Tensor]) -> int:
    """Number of bytes of tensors written; OSError that names the file if it could not be."""
    # Parts of a fused tensor share its storage; a shard holds each by itself.
    separate = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    try:
        save_file(separate, file, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise OSError(f"{file}: could not be written ({error}); is the disk full?") from error
    return sum(tensor.numel() * tensor.element_size() for tensor in separate.values())


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
