"""Write a pruned copy of a checkpoint, one shard a layer, under the keys that its owners use."""

import json
from pathlib import Path
from shutil import copyfile, disk_usage

from torch import Tensor

from stun_exp.disk.architecture import EXPERTS_PER_LAYER
from stun_exp.disk.checkpoint import Checkpoint
from stun_exp.disk.shards import INDEX, read_json, write_shard
from stun_exp.moe.layers import MoELayer


class CheckpointWriter:
    """Writes a pruned copy of a checkpoint, one shard a decoder layer, under stock per-expert keys."""

    def __init__(self, source: Checkpoint, path: Path):
        """Creates the folder; OSError if the disk cannot take an unpruned copy."""
        self.source = source
        self.path = path
        needed = sum(tensor.numel() for tensor in source.skeleton.state_dict().values()) * source.dtype.itemsize
        free = disk_usage(path.parent).free
        if free < needed:
            raise OSError(
                f"{path}: the checkpoint needs up to {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free; "
                "free some space or choose another disk with hydra.run.dir=DIR"
            )
        path.mkdir()
        self.weight_map: dict[str, str] = {}
        self.total_size = 0
        self.experts_per_layer: list[int] = []

    def write_layer(self, layer: MoELayer) -> None:
        """Writes one layer; layers must come in order."""
        assert layer.index == len(self.experts_per_layer)
        prefix = f"{self.source.paths[layer.index]}."
        state = {prefix + name: tensor.detach().cpu() for name, tensor in layer.module.state_dict().items()}
        self._write(layer.index, self.source.keys.revert(state))
        self.experts_per_layer.append(layer.num_experts)

    def finish(self) -> None:
        """Writes what lies outside the layers, the index (last of the weights), config and tokenizer."""
        self._write(self.source.num_layers, self.source.read_rest())
        index = {"metadata": {"total_size": self.total_size}, "weight_map": self.weight_map}
        (self.path / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        for file in self.source.path.iterdir():
            carried = file.suffix in {".json", ".txt", ".model", ".jinja"}
            if carried and file.name != "config.json" and not file.name.endswith(".index.json"):
                copyfile(file, self.path / file.name)
        config = read_json(self.source.path / "config.json")
        config.pop("torch_dtype", None)
        config.pop("quantization_config", None)
        config["dtype"] = str(self.source.dtype).removeprefix("torch.")
        # A training setting: it costs memory in every pass, and fails on layers of different sizes.
        config["output_router_logits"] = False
        counts = [count for count in self.experts_per_layer if count]
        if len(set(counts)) == 1:
            for part, key in self.source.count_keys(config):
                part[key] = counts[0]
            config.pop(EXPERTS_PER_LAYER, None)
        else:
            config[EXPERTS_PER_LAYER] = self.experts_per_layer
        (self.path / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    def _write(self, number: int, tensors: dict[str, Tensor]) -> None:
        name = f"model-{number + 1:05d}-of-{self.source.num_layers + 1:05d}.safetensors"
        self.total_size += write_shard(self.path / name, tensors)
        self.weight_map |= dict.fromkeys(tensors, name)
