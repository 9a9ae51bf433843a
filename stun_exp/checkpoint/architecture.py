"""What config.json alone says of a model: its family, and the whole of it without weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from stun_exp.models import register
from stun_exp.models.fused import fuse_experts_
from stun_exp.moe import coupled
from stun_exp.moe.families import family_of
from stun_exp.moe.layers import MoELayer, layer_paths, layers_of
from stun_exp.utils.files import own_file, read_json_object

EXPERTS_PER_LAYER = "experts_per_layer"
"""Key in config.json of a pruned model whose layers keep different numbers of experts."""

WIDTHS_PER_LAYER = "widths_per_layer"
"""Key in config.json of a dense model whose layers are not equally wide: [hidden units, groups of heads] of each."""

MOST = 10_000
"""Layers, or experts of a layer, that any model has: far more than those there are."""


class Architecture:
    """A model on the meta device, built from a folder's config.json."""

    def __init__(self, path: Path, dtype: torch.dtype | None = None, dimensions: dict[str, Any] | None = None):
        """`dtype` None takes what the config says; `dimensions` stand for config.json where there is no folder yet.

        FileNotFoundError without config.json, ValueError for a family that is not supported. Code that comes with the
        model is never run.
        """
        if dimensions is None and not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path}: no config.json; give the folder of a Hugging Face checkpoint")
        self.path = path
        self.at_hand = dimensions is None
        self.raw = read_json_object(own_file(path, "config.json", "config.json")) if dimensions is None else dimensions
        self.family = family_of(self.raw.get("model_type"), path / "config.json")
        self.experts_per_layer = self._counts()
        self.source_dtype = self._config_dtype()
        """The one that the weights are kept in, as far as config.json says."""
        self.dtype = dtype or self.source_dtype
        register()
        with self._said_by_config():
            self.config = CONFIG_MAPPING[self.family.model_type].from_dict(deepcopy(self.raw))
        # For other readers: experts_per_layer says the same, and a stock model cannot be built of unequal layers.
        self.config.per_layer_config = None

    @contextmanager
    def _said_by_config(self) -> Iterator[None]:
        """Makes one line of whatever transformers raises in the block over the values in config.json."""
        try:
            yield
        except Exception as error:  # its checks, and for what those let pass any error at all
            told = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self.path / 'config.json'}: no {self.family.model_type} can be built of it ({type(error).__name__}: "
                f"{told}); download it again"
            ) from error

    def _check_sizes(self) -> None:
        """ValueError for so many layers or experts that even to build their outlines would take all memory."""
        text = self.config.get_text_config()
        for key in ("num_hidden_layers", "num_decoder_layers", self.family.num_experts_key):
            number = getattr(text, key, None) if key else None
            if isinstance(number, int) and number > MOST:
                raise ValueError(f"{key}={number:,} is more than {MOST:,}")

    def _counts(self) -> list[int] | None:
        """How many experts each layer keeps, where the config says so."""
        counts = self.raw.get(EXPERTS_PER_LAYER)
        if counts is None:
            return None
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(
                f"{self.path / 'config.json'}: {EXPERTS_PER_LAYER} must be a list of whole numbers, one for each layer"
            )
        return counts

    def _widths(self, num_layers: int) -> list[list[int]]:
        """[Hidden units, groups of heads] of each layer of a dense model, where the config says so; else none."""
        widths: list[list[int]] = self.raw.get(WIDTHS_PER_LAYER, [])
        pairs = isinstance(widths, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(type(width) is int and width >= 0 for width in pair)
            for pair in widths
        )
        if not pairs or len(widths) not in (0, num_layers):
            raise ValueError(
                f"{self.path / 'config.json'}: {WIDTHS_PER_LAYER} must be a list of [hidden units, groups of heads], "
                f"one for each of the {num_layers} layers"
            )
        return widths

    def _config_dtype(self) -> torch.dtype:
        name = str(self.raw.get("dtype") or self.raw.get("torch_dtype") or "float32")
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{self.path / 'config.json'}: dtype={name!r} is none; pass model.dtype=bfloat16, say")
        return dtype

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The whole model without weights, with fused experts, as many a layer as are on disk. Do not change it."""
        auto = AutoModelForSeq2SeqLM if self.config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            with self._said_by_config():
                self._check_sizes()
                model: PreTrainedModel = auto.from_config(self.config, dtype=self.dtype)
            fuse_experts_(model.eval(), self.family)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if self._kept_in_fp32(model, name, self.dtype):
                tensor.data = tensor.data.float()
        layers = layers_of(model, self.family)
        if self.experts_per_layer is not None and len(self.experts_per_layer) != len(layers):
            raise ValueError(
                f"{self.path / 'config.json'}: {EXPERTS_PER_LAYER} has {len(self.experts_per_layer)} numbers, and the "
                f"model has {len(layers)} layers"
            )
        for layer, count in zip(layers, self.experts_per_layer or (), strict=False):
            if count:
                layer.resize(count)
        for layer, (units, groups) in zip(layers, self._widths(len(layers)), strict=False):
            coupled.resize_(layer, units, groups)
        return model

    @cached_property
    def stacks(self) -> list[list[str]]:
        """The names of the layers in memory, stack by stack: one stack, or an encoder's and a decoder's."""
        return layer_paths(self.skeleton, self.family)

    @cached_property
    def paths(self) -> list[str]:
        """The names of the layers in memory, in the order in which they run."""
        return [path for stack in self.stacks for path in stack]

    @property
    def num_layers(self) -> int:
        return len(self.paths)

    @property
    def num_parameters(self) -> int:
        """Parameters of the architecture, tied ones once."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    @cached_property
    def outlines(self) -> list[MoELayer]:
        """The layers' shapes, on the meta device: for counting. Do not change them."""
        return layers_of(self.skeleton, self.family)

    def outline(self, index: int) -> MoELayer:
        return self.outlines[index]

    def _kept_in_fp32(self, model: PreTrainedModel, name: str, dtype: torch.dtype) -> bool:
        """Whether transformers keeps a tensor in 32 bits though the model has another dtype, of 16."""
        kept: set[str] = set()
        if dtype in (torch.float16, torch.bfloat16):
            kept |= model._keep_in_fp32_modules_strict or set()
        if dtype == torch.float16:
            kept |= model._keep_in_fp32_modules or set()
        return any(f".{part}." in f".{name}." for part in kept)

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a tensor in memory: this model's, but for the few that are kept in 32 bits."""
        return self.skeleton_dtypes.get(name, self.dtype)

    @property
    def written_dtype(self) -> torch.dtype:
        """The dtype of a pruned copy on disk: what the model is worked on in, but never a wider one than its own."""
        return min(self.dtype, self.source_dtype, key=lambda dtype: dtype.itemsize)

    def written_dtype_of(self, name: str) -> torch.dtype:
        """The dtype in which the tensor of that name in memory is written."""
        if self._kept_in_fp32(self.skeleton, name, self.written_dtype):
            return torch.float32
        return self.written_dtype

    @cached_property
    def skeleton_dtypes(self) -> dict[str, torch.dtype]:
        return {name: tensor.dtype for name, tensor in self.skeleton.state_dict().items()}

    def count_keys(self, config: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
        """Where `config` holds the expert count: transformers renames it in some families when it saves a model."""
        if self.family.num_experts_key is None:
            return []
        *folders, key = self.family.num_experts_key.split(".")
        for folder in folders:
            config = config[folder]
        renamed = self.config.attribute_map
        spellings = {key, renamed.get(key, key)} | {old for old, new in renamed.items() if new == key}
        return [(config, spelling) for spelling in spellings & config.keys() or {key}]
