"""Shards of a model folder: which holds which key, tensors in and out, all with errors that name the file."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stun_exp.utils.files import digest_of, own_file, read_json, write_file

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MAPPED = 1 << 30
"""Bytes of a file that may be mapped before it is opened anew."""
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


class Header(NamedTuple):
    """What a file of weights says of one tensor."""

    file: Path
    dtype: str
    """By safetensors' name: F32, BF16, ..."""
    shape: tuple[int, ...]


def find_shards(folder: Path) -> dict[str, Header]:
    """Key -> where it is and what its file says of it; every file is there, whole, and has what the index names.

    A key that only a file has counts too: transformers goes by the files. FileNotFoundError for a missing file,
    ValueError for a damaged one, another format, and two files of one key.
    """
    single = folder / SINGLE
    if not (folder / INDEX).is_file():
        if not single.is_file():
            raise FileNotFoundError(f"{folder}: neither {INDEX} nor {SINGLE}; only safetensors are read")
        return _headers(own_file(folder, SINGLE, SINGLE))
    weight_map = read_json(own_file(folder, INDEX, INDEX)).get("weight_map", {})
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{folder / INDEX}: weight_map must say a file for each key; download it again")
    names = sorted(set(weight_map.values()))
    if single.is_file() and SINGLE not in names:
        raise ValueError(
            f"{folder}: holds {SINGLE} and {INDEX}, which does not name it; transformers reads the first and other "
            "tools the second: remove the one that is not meant"
        )
    files = {name: own_file(folder, name, INDEX) for name in names}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder / missing[0]}: named by {INDEX} but not there ({len(missing)} such files); download it again"
        )
    found: dict[str, Header] = {}
    for file in files.values():
        for key, header in _headers(file).items():
            if key in found:
                raise ValueError(f"{file}: {key} is in {found[key].file.name} too; download the checkpoint again")
            found[key] = header
    for key, name in weight_map.items():
        if key not in found or found[key].file != files[name]:
            raise ValueError(f"{files[name]}: {key} is not in it, but {INDEX} says so; download it again")
    return found


def _headers(file: Path) -> dict[str, Header]:
    """What a file says of its tensors, in its order; the library looks whether the file is whole."""
    with _open(file), file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        about: dict[str, Any] = from_json(handle.read(length))
    return {
        key: Header(file, entry["dtype"], tuple(entry["shape"]))
        for key, entry in about.items()
        if key != "__metadata__"
    }


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


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file}: truncated or not a safetensors file ({error}); download it again") from error


def digests_in(folder: Path) -> dict[str, str | None]:
    """The sha256 of the shards in a folder, by name."""
    files = list(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as threads:  # one hashes more slowly than a good disk reads
        return {file.name: digest for file, digest in zip(files, threads.map(digest_of, files), strict=True)}
