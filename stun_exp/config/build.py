"""A config made into settings, and every mistake of it at once."""

import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from stun_exp.config.component import Component
from stun_exp.config.errors import described, dotted, no_such
from stun_exp.config.moved import moved_to
from stun_exp.config.settings import RunSpec, Settings, specs_of
from stun_exp.config.slots import kinds_of, misfit


class ConfigError(ValueError):
    """Every mistake of one config, a line each in `mistakes`."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(dict.fromkeys(mistakes))
        super().__init__("\n".join(self.mistakes))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[str, ...]]]:
        return ConfigError, (self.mistakes,)  # launchers send it between processes


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


def specs_from(cfg: DictConfig, out: Path) -> list[RunSpec]:
    """The runs that `cfg` describes, in the folder `out`; ConfigError with every mistake."""
    settings = build(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    return specs_of(settings, {str(key): value for key, value in config.items()}, out)


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
    if (now := moved_to(str(target))) is not None:
        mistakes.append(f"{where}: is now {now}; pass {dotted(path, '_target_')}={now}")
        return None
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
    if why := misfit(components[name], path, kinds_of(Settings)):
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
