"""What is measured of models in use, as plain data: sizes, tokens a second, and what zeros could save."""

from dataclasses import dataclass, field

KV_TOKENS = 8
"""Tokens of a prompt that show what one takes in the cache; so few that no sliding window is full."""


@dataclass(frozen=True)
class Workload:
    """What models are given to do."""

    batch_sizes: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    """Generated behind each prompt; the first one comes with the prompt."""
    repeats: int


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, and their quartiles."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Speed:
    """Tokens a second at one batch size: all tokens of the prompts, and those generated after the first."""

    batch_size: int
    prefill: Spread
    decode: Spread


@dataclass(frozen=True)
class Variant:
    """A model once more, with the same shapes and other numbers or kernels."""

    name: str
    speed: list[Speed]


@dataclass(frozen=True)
class StorageFormats:
    """Bytes of a model's weights if zeros were stored by a format; nothing here writes it, and no engine reads it."""

    dense: float
    bitmask: float
    """Each matrix in the smaller of dense and a bit for each weight beside those that are not zero."""
    two_four: float
    """Matrices with two zeros in every four neighbors in half of their bytes and two bits a kept weight."""
    num_matrices: int
    num_two_four: int


@dataclass(frozen=True)
class ExpertsHit:
    """Distinct experts that a batch's tokens choose in a layer, in the mean over layers."""

    batch_size: int
    decode: float
    """By a token of each sequence, in the mean over places in the text."""
    prefill: float
    """By all tokens of the prompts."""


@dataclass(frozen=True)
class ModelFigures:
    """One model: what it takes, and how fast it is."""

    name: str
    path: str
    disk_bytes: int
    weight_bytes: int
    """Of the weights as they are held in memory."""
    parameters: int
    active_parameters: int
    """Those that a token meets: all but the experts that its router does not choose."""
    num_experts: float
    """Of a layer, in the mean over the layers that have some."""
    zeros: float
    """Share of the weights in matrices."""
    formats: StorageFormats
    experts_hit: list[ExpertsHit]
    kv_bytes_per_token: float
    freed_bytes: int
    """Bytes that its weights take less than those of the first model."""
    freed_tokens: int
    """Tokens whose keys and values take so many bytes."""
    speed: list[Speed]
    variants: list[Variant] = field(default_factory=list)


@dataclass(frozen=True)
class VllmFigures:
    """The same models in vLLM, in a process of its own."""

    version: str | None
    speed: dict[str, list[Speed]]
    failed: dict[str, str]
    """Why a model has no figures, by its name."""


@dataclass(frozen=True)
class KernelFigures:
    """A product by a sparse kernel against the dense one, at the shape of an expert's matrix in a real model."""

    kernel: str
    outputs: int
    inputs: int
    tokens: int
    dense_ms: Spread
    sparse_ms: Spread
    error: float
    """Largest difference, as a share of the largest output."""


@dataclass(frozen=True)
class Comparison:
    """What was measured of some models side by side; the first is what others are compared with."""

    engine: str
    device: str
    threads: int
    dtype: str
    workload: Workload
    models: list[ModelFigures]
    vllm: VllmFigures | None = None
    kernels: list[KernelFigures] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""
