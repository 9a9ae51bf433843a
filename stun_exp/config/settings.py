"""The settings of a run: their schema, the rules between them, and every mistake of a config at once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, InstanceOf, ValidationError, ValidationInfo, field_validator

from stun_exp.allocation.protocol import Allocation
from stun_exp.calibration.protocol import Calibration
from stun_exp.checkpoint.model import Model
from stun_exp.config.component import Component
from stun_exp.config.errors import described, dotted, no_such
from stun_exp.config.kinds import Fits, misfit
from stun_exp.evaluation.benchmarks import NoEvaluation
from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.export.protocol import Export
from stun_exp.recovery.protocol import Recovery
from stun_exp.skipping.protocol import Skipping
from stun_exp.state.cache import Cache
from stun_exp.streaming.settings import Streaming
from stun_exp.tracker.wandb import NoTracker
from stun_exp.unstructured_pruner.protocol import UnstructuredPruner

RATIO_TOLERANCE = 0.0005
"""How far `sparsity` may be from the ratio of experts that alone make it: shares of experts are odd numbers."""


class ConfigError(ValueError):
    """Every mistake of one config, a line each in `mistakes`."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(dict.fromkeys(mistakes))
        super().__init__("\n".join(self.mistakes))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[str, ...]]]:
        return ConfigError, (self.mistakes,)  # launchers send it between processes


class Settings(Component):
    """One run, checked: its components, how much to prune, and how to call it."""

    model: Annotated[InstanceOf[Component], Fits(Model)]
    calibration: Annotated[InstanceOf[Component], Fits(Calibration)]
    expert_pruner: Annotated[InstanceOf[Component], Fits(ExpertPruner)]
    allocation: Annotated[InstanceOf[Component], Fits(Allocation)]
    unstructured_pruner: Annotated[InstanceOf[Component], Fits(UnstructuredPruner)]
    recovery: Annotated[InstanceOf[Component], Fits(Recovery)]
    skipping: Annotated[InstanceOf[Component], Fits(Skipping)]
    eval: Annotated[InstanceOf[Component], Fits(NoEvaluation)]
    export: Annotated[InstanceOf[Component], Fits(Export)]
    stream: Annotated[InstanceOf[Component], Fits(Streaming)]
    tracker: Annotated[InstanceOf[Component], Fits(NoTracker)]
    cache: Annotated[InstanceOf[Component], Fits(Cache)]
    # After the pruners: its check compares it with them, and pydantic checks fields in this order.
    sparsity: float | tuple[float, ...]
    """Several are several runs that go through the model together."""
    sparsity_scope: Literal["experts", "decoder", "model"]
    seed: int = Field(ge=0)
    name: str
    save: bool
    dry_run: bool
    resume: Literal["continue", "restart"]

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
        if "expert_pruner" not in info.data or "unstructured_pruner" not in info.data:
            return sparsity  # a pruner is wrong and has its own line
        ratio = getattr(info.data["expert_pruner"], "ratio", None)
        # A replayed plan has a ratio that nobody can set.
        settable = "ratio" in type(info.data["expert_pruner"]).model_fields
        if getattr(info.data["unstructured_pruner"], "prunes", True):
            if ratio is not None and ratio > sparsity:
                other = f", or expert_pruner.ratio={sparsity} or less" if settable else ""
                raise ValueError(
                    f"below expert_pruner.ratio={ratio}, which alone removes more; pass sparsity={ratio} or more{other}"
                )
        elif ratio is None and sparsity != 0:
            raise ValueError(
                "expert_pruner=none and unstructured_pruner=none prune nothing; pass sparsity=0, or choose a pruner"
            )
        elif ratio is not None and round(abs(ratio - sparsity), 9) > RATIO_TOLERANCE:  # 0.2005 - 0.2 is a bit more
            other = f" or expert_pruner.ratio={sparsity}" if settable else ""
            raise ValueError(
                f"with unstructured_pruner=none it must equal expert_pruner.ratio={ratio} to {RATIO_TOLERANCE}; pass "
                f"sparsity={ratio}{other}, or choose an unstructured_pruner"
            )
        return sparsity


def kinds() -> dict[str, type]:
    """For each of a run's components, what it must have: the kind beside its field."""
    fields = Settings.model_fields.items()
    return {name: mark.kind for name, field in fields for mark in field.metadata if isinstance(mark, Fits)}


class Point(NamedTuple):
    """One run of one sparsity: its settings, the same as plain data, and its folder."""

    settings: Settings
    config: dict[str, Any]
    out: Path


def folders(sparsity: float | Sequence[float], out: Path) -> list[Path]:
    """Where runs are: one in `out`, or one of each of several sparsities in folders there."""
    return [out] if isinstance(sparsity, int | float) else [out / f"sparsity={_shortest(one)}" for one in sparsity]


def _shortest(number: float) -> str:
    """The shortest text that is read as this number and no other: 0.4, 0.4000000001."""
    return short if float(short := f"{number:g}") == number else repr(number)


def points(settings: Settings, config: dict[str, Any], out: Path) -> list[Point]:
    """The runs that the settings ask for: one, or one of each of several sparsities."""
    sparsities = settings.sparsity if isinstance(settings.sparsity, tuple) else (settings.sparsity,)
    return [
        Point(settings.model_copy(update={"sparsity": one}), config | {"sparsity": one}, folder)
        for one, folder in zip(sparsities, folders(settings.sparsity, out), strict=True)
    ]


def build(cfg: DictConfig, unknown: Iterable[str] = ()) -> Settings:
    """The settings that `cfg` describes, every component built.

    Raises ConfigError with every mistake. Nothing is said of the settings in `unknown`, nor of rules that
    involve them: the command-line check names there what it could not work out.
    """
    unknown = set(unknown)
    mistakes: list[str] = []
    values = {key: _built(_item(cfg, key, key, mistakes), key, mistakes) for key in map(str, cfg)}
    settings = _checked(Settings, values | dict.fromkeys(unknown, _WRONG), "", mistakes)
    mistakes = [line for line in mistakes if re.split(r"[.=:]", line, maxsplit=1)[0] not in unknown]
    if mistakes or not isinstance(settings, Settings):
        raise ConfigError(mistakes)
    return settings


class _Wrong:
    """Stands for a value that has its line already, so that what holds it says nothing more about it."""


_WRONG: Any = _Wrong()


def _built(node: Any, path: str, mistakes: list[str]) -> Any:
    """`node` as plain data, with a component for every mapping that has a `_target_`."""
    if isinstance(node, ListConfig):
        paths = [dotted(path, i) for i in range(len(node))]
        return [_built(_item(node, i, inner, mistakes), inner, mistakes) for i, inner in enumerate(paths)]
    if not isinstance(node, DictConfig):
        return node
    values = {}
    for key in node:
        inner = dotted(path, key)
        values[str(key)] = _built(_item(node, key, inner, mistakes), inner, mistakes)
    if "_target_" not in values:
        return values
    component = _component(values.pop("_target_"), path, mistakes)
    return _checked(component, values, path, mistakes) if component else _WRONG


def _item(node: DictConfig | ListConfig, key: Any, path: str, mistakes: list[str]) -> Any:
    """The value at `key`, interpolations resolved; _WRONG, with a line in `mistakes`, if it has none."""
    if OmegaConf.is_missing(node, key):
        mistakes.append(f"{path}: required; pass {path}={'DIR' if key == 'path' else 'VALUE'}")
        return _WRONG
    try:
        return node[key]
    except (OmegaConfBaseException, ValueError) as error:  # ValueError: from a resolver
        mistakes.append(f"{path}: {str(error).splitlines()[0]}")
        return _WRONG


def _component(target: Any, path: str, mistakes: list[str]) -> type[Component] | None:
    """The component class at the dotted path `target`; None, with a line in `mistakes`, if none is there or fits."""
    where = f"{dotted(path, '_target_')}={target!s:.200}"
    module_name, _, name = str(target).rpartition(".")
    try:
        module = import_module(module_name)
    except Exception as error:  # of the module's own code too; and `target` may be no name at all
        mistakes.append(f"{where}: cannot be imported ({error!s:.200}); pass MODULE.CLASS")
        return None
    components = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Component)}
    if name not in components:
        mistakes.append(f"{where}: {no_such('component', name, components.keys() - {'Component'})}")
        return None
    if why := misfit(components[name], path, kinds()):
        mistakes.append(f"{where}: {why}")
        return None
    return components[name]


def _checked(model: type[Component], values: Mapping[str, Any], path: str, mistakes: list[str]) -> Any:
    """A `model` of `values`; _WRONG, with its lines in `mistakes`, if they do not fit."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        texts: dict[str, list[str]] = {}
        for detail in error.errors(include_url=False):
            if detail["input"] is not _WRONG:
                where, text = described(detail, model, values, path)
                texts.setdefault(where, []).append(text)
        # several texts for one setting are the branches of a union, `int | Literal["auto"]`
        for where, (text, *others) in texts.items():
            branches = [text, *(other.removeprefix("must be ") for other in others)]
            mistakes.append(f"{where}: {' or '.join(branches)}")
        return _WRONG
