"""Write a pruned copy of a checkpoint, one shard a layer, under the keys that its owners use."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage
from typing import Any

from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.expert_counts import EXPERTS_PER_LAYER
from stun_exp.checkpoint.older_keys import with_older_keys
from stun_exp.checkpoint.shards import INDEX, Shard, each_tensor, write_shard
from stun_exp.checkpoint.source import carried_files
from stun_exp.moe.layers import MoELayer
from stun_exp.utils.files import digest_of, sync_folder, write_file

CARD, CODE = "README.md", "modeling_stun.py"
"""What an export and a run's end add to the folder: the model card, and what loads layers of different sizes."""

PADDED = "padded"
"""How the files of layers begin that an export has filled with experts."""


def names_in(source: Checkpoint) -> list[str]:
    """The files of the folder that is written of a source, by their names in it."""
    carried, _ = carried_files(source.path)
    shards = [shard_name(source, number) for number in range(source.num_layers + 1)]
    padded = [shard_name(source, number, PADDED) for number in range(source.num_layers)]
    return [*shards, *padded, *carried, "config.json", INDEX, CARD, CODE]


def shard_name(source: Checkpoint, number: int, kind: str = "model") -> str:
    """The file of a layer; the number after the last layer's is that of what lies outside the layers."""
    return f"{kind}-{number + 1:05d}-of-{source.num_layers + 1:05d}.safetensors"


def check_space(source: Checkpoint, out: Path, finished: Mapping[int, Shard]) -> None:
    """OSError if the disk of a run's folder cannot take the layers that are not finished yet, unpruned."""
    done = tuple(f"{path}." for index, path in enumerate(source.paths) if index in finished)
    missing = {name: tensor for name, tensor in source.skeleton.state_dict().items() if not name.startswith(done)}
    needed = sum(tensor.numel() * source.written_dtype_of(name).itemsize for name, tensor in missing.items())
    free = disk_usage(out).free
    if free < needed:
        raise OSError(
            f"{out / 'checkpoint'}: the checkpoint needs up to {needed / 1e6:,.1f} MB{' more' if done else ''} and "
            f"{free / 1e6:,.1f} MB are free; free some space or choose another disk with hydra.run.dir=DIR"
        )


class CheckpointWriter:
    """Writes a pruned copy of a checkpoint, one shard a decoder layer, under stock per-expert keys."""

    def __init__(self, source: Checkpoint, path: Path, finished: Mapping[int, Shard] | None = None):
        """Creates the folder, or goes on with it; OSError if the disk cannot take what is missing, unpruned.

        `finished` are the shards, by layer, that lie there as they should (what is outside the layers has the number
        after the last layer's). None is a folder that must not be there yet.
        """
        self.source = source
        self.path = path
        self.shards = dict(finished or {})
        """Of each layer that is written; last that of what lies outside the layers."""
        self.replaced: list[str] = []
        """Files whose layers lie in another now. They stay until the run is over: one that is interrupted goes on with
        what the stages before the export have written."""
        check_space(source, path.parent, self.shards)
        path.mkdir(exist_ok=finished is not None)
        sync_folder(path.parent)
        (path / INDEX).unlink(missing_ok=True)  # a folder with an index is whole

    def write_layer(self, layer: MoELayer) -> Shard:
        """The shard of one layer, which is on disk when this returns."""
        return self._write(layer, "model")

    def _write(self, layer: MoELayer, kind: str) -> Shard:
        prefix = self._prefix(layer)
        state = {
            prefix + name: self._as_written(prefix + name, tensor) for name, tensor in layer.module.state_dict().items()
        }
        shard = write_shard(self.path / shard_name(self.source, layer.index, kind), self.source.keys.revert(state))
        self.shards[layer.index] = replace(shard, num_experts=layer.num_experts)
        return self.shards[layer.index]

    def replace_layers(self, layers: Iterable[MoELayer]) -> None:
        """Writes layers that an export has padded beside the files that they were in, and then the folder anew."""
        (self.path / INDEX).unlink()
        for layer in layers:
            self.replaced.append(self.shards[layer.index].name)
            self._write(layer, PADDED)
        self.finish()

    def restore_(self, layer: MoELayer) -> None:
        """Puts the written weights of a layer in the place of its own, which are those before the second stage."""
        shard, prefix, keys = self.shards[layer.index], self._prefix(layer), self.source.keys
        own = {prefix + name: tensor for name, tensor in layer.module.state_dict().items()}
        files, single = dict.fromkeys(shard.keys, self.path / shard.name), {}
        for key, stored in each_tensor(files, {key: [key] for key in shard.keys}):
            slot = keys.slot(key)
            if slot is None:
                single[key] = stored[key]
            else:
                own[slot.target][slot.expert].chunk(slot.parts)[slot.part].copy_(stored[key])
        for name, tensor in keys.convert(single).items():
            own[name].copy_(tensor)

    def finish(self) -> None:
        """Writes what lies outside the layers, tokenizer, license and config, and then the index: the folder is whole.

        Until the index is there, nobody takes the folder for a checkpoint.
        """
        last = self.source.num_layers
        if last not in self.shards:
            rest = {
                key: self._as_written(self.source.keys.target(key), tensor)
                for key, tensor in self.source.read_rest().items()
            }
            self.shards[last] = write_shard(self.path / shard_name(self.source, last), rest)
        for name in carried_files(self.source.path)[0]:
            (self.path / name).parent.mkdir(exist_ok=True)
            write_file(self.path / name, [(self.source.path / name).read_bytes()])
        self._write_json("config.json", self._config())
        shards = [self.shards[number] for number in range(last + 1)]
        weight_map = {key: shard.name for shard in shards for key in shard.keys}
        total = {"total_size": sum(shard.size for shard in shards)}
        self._write_json(INDEX, {"metadata": total, "weight_map": weight_map})

    def rehash(self) -> dict[int, Shard]:
        """The shards by number, with the checksums of what is in them now: a recovery writes other weights."""
        for number, shard in self.shards.items():
            self.shards[number] = replace(shard, sha256=digest_of(self.path / shard.name) or "")
        return self.shards

    def _config(self) -> dict[str, Any]:
        config = self.source.plain_config()
        for key in ("quantization_config", "auto_map"):  # the last leads to code of the source
            config.pop(key, None)
        config["dtype"] = str(self.source.written_dtype).removeprefix("torch.")
        if not self.source.family.is_dense:
            # A training setting: it costs memory in every pass, and fails on layers of different sizes.
            config["output_router_logits"] = False
        counts = [self.shards[index].num_experts for index in range(self.source.num_layers)]
        if len(set(counts) - {0}) <= 1:
            for part, key in self.source.count_keys(config):
                part[key] = max(counts)
                # The model's own name too: transformers saves some under one that others do not read.
                part[(self.source.family.num_experts_key or key).rpartition(".")[2]] = max(counts)
        else:
            config[EXPERTS_PER_LAYER] = counts
        return with_older_keys(config, getattr(self.source.config.get_text_config(), "rope_parameters", None))

    def _as_written(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor in the dtype in which it is written: what was computed in a wider one is rounded here, once."""
        return tensor.to(self.source.written_dtype_of(name)) if tensor.is_floating_point() else tensor

    def _write_json(self, name: str, content: Any) -> None:
        write_file(self.path / name, [(json.dumps(content, indent=1) + "\n").encode()])

    def _prefix(self, layer: MoELayer) -> str:
        return f"{self.source.paths[layer.index]}."
