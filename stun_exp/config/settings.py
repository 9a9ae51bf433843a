"""The settings of a run: what each must be, which stages it affects, and the rules between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from stun_exp.allocation.protocol import Allocation
from stun_exp.calibration.protocol import Calibration
from stun_exp.checkpoint.model import Model
from stun_exp.config.component import Component
from stun_exp.config.slots import Since, Slot
from stun_exp.evaluation.protocol import Evaluation
from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.export.protocol import Export
from stun_exp.inference.protocol import Inference
from stun_exp.recovery.protocol import Recovery
from stun_exp.skipping.protocol import Skipping
from stun_exp.state.cache import Cache
from stun_exp.streaming.settings import Streaming
from stun_exp.structured_pruner.protocol import StructuredPruner
from stun_exp.tracker.protocol import Tracker
from stun_exp.unstructured_pruner.protocol import UnstructuredPruner

STAGES = (
    *("open", "structure", "experts", "allocate", "prune", "recover"),
    *("verify", "export", "skip", "evaluate", "inference"),
    "report",
)
"""What a run goes through; a setting affects the stage that `Since` names, and all after it."""
WEIGHT_STAGES = STAGES[: STAGES.index("recover") + 1]
"""Those that the pruned weights come from."""
RATIO_TOLERANCE = 0.0005
"""How far `sparsity` may be from the ratio of experts that alone make it: shares of experts are odd numbers."""


class Settings(Component):
    """One run, checked: its components, how much to prune, and how to call it."""

    model: Annotated[Model, Slot(), Since("open")]
    calibration: Annotated[Calibration, Slot(), Since("open")]
    structured_pruner: Annotated[StructuredPruner, Slot(), Since("structure")]
    expert_pruner: Annotated[ExpertPruner, Slot(), Since("experts")]
    allocation: Annotated[Allocation, Slot(), Since("allocate")]
    unstructured_pruner: Annotated[UnstructuredPruner, Slot(), Since("allocate")]
    recovery: Annotated[Recovery, Slot(), Since("recover")]
    skipping: Annotated[Skipping, Slot(), Since("skip")]
    eval: Annotated[Evaluation, Slot(), Since("evaluate")]
    export: Annotated[Export, Slot(), Since("export")]
    inference: Annotated[Inference, Slot(), Since("inference")]
    stream: Annotated[Streaming, Slot(), Since(None)]
    tracker: Annotated[Tracker, Slot(), Since(None)]
    cache: Annotated[Cache, Slot(), Since(None)]
    # After the pruners: its check compares it with them, and pydantic checks fields in this order.
    sparsity: Annotated[float | tuple[float, ...], Since("allocate")]
    """Several are several runs that go through the model together."""
    sparsity_scope: Annotated[Literal["experts", "decoder", "model"], Since("allocate")]
    # The calibration text that it draws is known by its content.
    seed: Annotated[int, Since("recover")] = Field(ge=0)
    name: Annotated[str, Since("report")]
    save: Annotated[bool, Since("report")]
    measure_damage: Annotated[bool, Since("report")]
    dry_run: Annotated[bool, Since(None)]
    resume: Annotated[Literal["continue", "restart"], Since(None)]

    # A check of one field, not of the whole model: pydantic skips those once any field is wrong, and a typo
    # in `seed` should not hide that `sparsity` is out of reach.
    @field_validator("sparsity")
    @classmethod
    def _within_reach(cls, sparsity: float | tuple[float, ...], info: ValidationInfo) -> float | tuple[float, ...]:
        """`sparsity`, which the two pruners together can meet."""
        if isinstance(sparsity, tuple):
            if len(set(sparsity)) < max(len(sparsity), 1):
                raise ValueError(
                    "several sparsities must differ, and there must be one at least; pass sparsity=[0.4,0.5]"
                )
            for one in sparsity:
                cls._within_reach(one, info)
            return sparsity
        if not 0 <= sparsity < 1:
            raise ValueError("must be at least 0 and below 1")
        if not {"structured_pruner", "expert_pruner", "unstructured_pruner"} <= info.data.keys():
            return sparsity  # a pruner is wrong and has its own line
        structured: float = info.data["structured_pruner"].removed_share()
        if structured:
            if structured > sparsity:
                raise ValueError(
                    f"below structured_pruner.ratio={structured}, which alone removes more; pass sparsity={structured} "
                    f"or more, or structured_pruner.ratio={sparsity} or less"
                )
            return sparsity
        pruner: ExpertPruner = info.data["expert_pruner"]
        ratio, settable = pruner.removed_share(), pruner.has_ratio()
        if info.data["unstructured_pruner"].prunes:
            if ratio > sparsity:
                other = f", or expert_pruner.ratio={sparsity} or less" if settable else ""
                raise ValueError(
                    f"below expert_pruner.ratio={ratio}, which alone removes more; pass sparsity={ratio} or more{other}"
                )
        elif not ratio and not settable and sparsity != 0:
            raise ValueError(
                "expert_pruner=none and unstructured_pruner=none prune nothing; pass sparsity=0, or choose a pruner"
            )
        elif round(abs(ratio - sparsity), 9) > RATIO_TOLERANCE:  # 0.2005 - 0.2 is a bit more
            other = f" or expert_pruner.ratio={sparsity}" if settable else ""
            raise ValueError(
                f"with unstructured_pruner=none it must equal expert_pruner.ratio={ratio} to {RATIO_TOLERANCE}; pass "
                f"sparsity={ratio}{other}, or choose an unstructured_pruner"
            )
        return sparsity

    @field_validator("name")
    @classmethod
    def _is_text(cls, name: str) -> str:
        """`name`, if a file can hold it."""
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"not text (half of a character, at {error.start}); pass another name") from error
        return name


class RunSpec(NamedTuple):
    """One run of one sparsity: its settings, the same as plain data, and its folder."""

    settings: Settings
    config: dict[str, Any]
    out: Path
    warnings: tuple[str, ...] = ()
    """What its command had to say of it."""


def since(stage: str | None) -> frozenset[str]:
    """The settings that affect a stage first; None for those that affect no result."""
    fields = Settings.model_fields.items()
    return frozenset(
        n for n, field in fields for mark in field.metadata if isinstance(mark, Since) and mark.stage == stage
    )


WITHOUT_EFFECT = since(None)
"""Settings that cannot change what a run leaves."""


def folders(sparsity: float | Sequence[float], out: Path) -> list[Path]:
    """Where runs are: one in `out`, or one of each of several sparsities in folders there."""
    return [out] if isinstance(sparsity, int | float) else [out / f"sparsity={_shortest(one)}" for one in sparsity]


def _shortest(number: float) -> str:
    """The shortest text that is read as this number and no other: 0.4, 0.4000000001."""
    return short if float(short := f"{number:g}") == number else repr(number)


def specs_of(settings: Settings, config: dict[str, Any], out: Path) -> list[RunSpec]:
    """The runs that the settings ask for: one, or one of each of several sparsities."""
    sparsities = settings.sparsity if isinstance(settings.sparsity, tuple) else (settings.sparsity,)
    return [
        RunSpec(settings.model_copy(update={"sparsity": one}), config | {"sparsity": one}, folder)
        for one, folder in zip(sparsities, folders(settings.sparsity, out), strict=True)
    ]
