"""What `scale.py` works with: random checkpoints of real layer shapes, and what disk, CPU and memory do."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEQUENCES, LENGTH = 4, 256


def make(dimensions: dict[str, Any], num_layers: int, folder: Path, ratio: float = 0.2) -> int:
    """Writes a checkpoint of random weights, a file for each expert; the bytes of a layer. OSError without room."""
    import torch
    from safetensors.torch import save_file

    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.checkpoint.keys import Keys
    from stun_exp.checkpoint.shards import INDEX
    from stun_exp.toy import WEIGHTS

    config = dimensions | {"num_hidden_layers": num_layers, "vocab_size": 2048, "dtype": "bfloat16"}
    model = Architecture(folder, dimensions=config)
    layer_bytes = sum(2 * parameter.numel() for parameter in model.outline(0).module.parameters())
    # Source, output, and the experts of the layer at work and of the one being read.
    layers = num_layers + (1 - ratio) * (num_layers + min(num_layers, 2)) + 0.1
    if layers * layer_bytes > shutil.disk_usage(folder.parent).free:
        raise OSError(f"the disk has no room for {layers * layer_bytes / 1e9:.0f} GB of source, output and scratch")
    folder.mkdir()
    state = {name: tensor.detach() for name, tensor in model.skeleton.state_dict().items()}
    files: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in Keys(model, ()).revert(state).items():
        # An expert's matrices together, and the rest of a layer.
        parts = key.split(".")
        where = parts.index("experts") + 2 if "experts" in parts else 3
        files.setdefault(".".join(parts[:where]), {})[key] = tensor
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(files.values()):
        name = f"part-{number:05d}.safetensors"
        weights = {key: torch.randn(t.shape, dtype=torch.bfloat16) * 0.02 for key, t in tensors.items()}
        save_file(weights, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(WEIGHTS / name, folder / name)
    rows = torch.randint(0, 1600, (SEQUENCES + 1, LENGTH)).tolist()
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"input_ids": row}) for row in rows))
    return layer_bytes


def disk_rates(folder: Path, size: int = 1 << 30) -> dict[str, float]:
    """Bytes a second of one GiB written and flushed, and read again after the system forgot it."""
    file = folder / "rate"
    block = os.urandom(1 << 24)
    start = time.perf_counter()
    with file.open("wb") as handle:
        for _ in range(size >> 24):
            handle.write(block)
        handle.flush()
        os.fsync(handle.fileno())
    write = size / (time.perf_counter() - start)
    with file.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while handle.read(1 << 24):
            pass
        read = size / (time.perf_counter() - start)
    file.unlink()
    return {"read": read, "write": write}


def device_rate(size: int = 1 << 30) -> float:
    """Bytes a second that the CPU reads and writes in copying a GiB: what looking at every weight once cannot beat."""
    import torch

    source = torch.ones(size, dtype=torch.uint8)
    copy = torch.empty_like(source)
    copy.copy_(source)
    start = time.perf_counter()
    for _ in range(4):
        copy.copy_(source)
    return 8 * size / (time.perf_counter() - start)


@contextmanager
def anonymous_memory() -> Iterator[list[float]]:
    """The most GB that were in use and in no file, looked at ten times a second: what the system cannot page out."""
    peak, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            status = Path("/proc/self/status").read_text()
            peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]) * 1024 / 1e9)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
