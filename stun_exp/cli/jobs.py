"""The jobs of a command line, each composed and built to see what is wrong with it."""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from stun_exp.cli.composing import HYDRA_ERRORS, MOST_CONFIGS, Composed, names_in, one_line
from stun_exp.cli.dense import without_experts_
from stun_exp.cli.naming import folder_name
from stun_exp.cli.overrides import Argument, ConfigGroups, parsed_override, setting_name
from stun_exp.cli.partial_settings import Lacks, PartialSetting, lack
from stun_exp.cli.places import folder_refusal, other_run, taken
from stun_exp.config.build import ConfigError, build
from stun_exp.config.errors import did_you_mean, dotted, no_such, shown
from stun_exp.config.settings import Settings, specs_of
from stun_exp.utils.paths import is_folder

MOST_JOBS = 1000
"""A job with other values takes a hundredth of a second to check."""
_REFERENCE = re.compile(r"\$\{([\w.\[\]]+)\}")
"""What a value takes from another setting."""


class Sweep(NamedTuple):
    """What a sweep has beside what was typed."""

    added: list[Argument]
    """What its file sweeps over, where nothing was typed for it."""
    unnamed: list[str]
    """Settings that do not name its folders."""
    partial: list[tuple[PartialSetting, Lacks]]
    """Settings that some points have, and what the others lack."""

    @property
    def partial_keys(self) -> set[str]:
        return {setting.key for setting, _ in self.partial}


NO_SWEEP = Sweep([], [], [])


@dataclass(frozen=True)
class Jobs:
    """The jobs that arguments ask for, composed and built to see what is wrong with them."""

    typed: list[Argument]
    sweep: Sweep
    params: dict[str, Any]  # what the sweep's file says
    groups: ConfigGroups
    composed: Callable[[tuple[str, ...]], Composed]
    names_only: bool  # `--cfg` shows a config whatever its values
    alone: bool  # there is one, and no sweep
    writes: bool  # whether its folders matter

    def mistakes(self) -> Iterator[str]:
        """The mistakes of the first job, those that each further value of a sweep adds, or those of combinations."""
        arguments = [argument for argument in [*self.typed, *self.sweep.added] if argument.texts]
        first = [argument.texts[0] for argument in arguments]
        others = {
            (i, text): list(self._of(arguments, [*first[:i], text, *first[i + 1 :]]))
            for i, argument in enumerate(arguments)
            for text in argument.texts[1:]
        }
        said = list(self._of(arguments, first))
        for line in said:
            # it is due to those choices without which it is not there
            due = {i for (i, _), lines in others.items() if arguments[i].composes and line not in lines}
            yield _in_job(line, [first[i] for i in sorted(due)])
        in_all = set(said)
        for (_, text), lines in others.items():
            for line in lines:
                if line not in in_all:
                    said.append(line)
                    yield _in_job(line, [text])
        configs = prod(len(argument.texts) for argument in arguments if argument.composes)
        if said or configs > MOST_CONFIGS or prod(len(argument.texts) for argument in arguments) > MOST_JOBS:
            return
        for job in product(*(argument.texts for argument in arguments)):
            for line in self._of(arguments, list(job)):
                if line not in said:
                    said.append(line)
                    swept = [text for text, argument in zip(job, arguments, strict=True) if len(argument.texts) > 1]
                    yield f"{line} (in the job with {' '.join(swept)})"

    def _of(self, arguments: list[Argument], job: list[str]) -> Iterator[str]:
        """The mistakes of one job: its names, then, with the wrong ones left out, its values."""
        try:
            composed = self.composed(tuple(t for t, a in zip(job, arguments, strict=True) if a.composes))
        except HYDRA_ERRORS as error:
            yield one_line(error)
            return
        HydraConfig.instance().set_config(composed.hydra)  # another job's may have been composed since
        if composed.sweep != self.params:
            yield "a sweep cannot be swept over, Hydra would ignore it; run one at a time"
        cfg, unknown = deepcopy(composed.cfg), self._unknown()
        names = names_in(cfg) | self.groups.names
        partial = self.sweep.partial_keys
        point = [(a, t) for a, t in zip(arguments, job, strict=True) if a.key not in partial or _name(a) in names]
        for argument, text in point:
            if not argument.composes and _name(argument).partition(".")[0] not in unknown:
                yield from self._set_(cfg, argument, text, names)
        if self.names_only:
            return
        without_experts_(cfg, job)
        out = self._folder(composed, point) if self.writes else None
        if out is not None and (why := folder_refusal(out)):
            yield f"{self._place(composed)}: {why}"
        try:
            settings = build(cfg, unknown)
        except ConfigError as error:
            yield from error.mistakes
        else:
            named = not self.alone and composed.names_folders
            if named and out is not None and not unknown and is_folder(out):
                yield from _of_others(settings, cfg, composed, out)

    def _set_(self, cfg: DictConfig, argument: Argument, text: str, names: frozenset[str]) -> Iterator[str]:
        """Sets one value in `cfg`; the mistake, if there is one."""
        if _name(argument) not in names:
            yield f"{argument.key}: {_no_such_setting(OmegaConf.to_container(cfg), _name(argument), names)}"
            return
        absent = [name for name in _REFERENCE.findall(text) if setting_name(name) not in names]
        if absent and not self.alone:
            why = lack(absent[0], HydraConfig.get().runtime.choices)
            yield f"{text}: {why} to take it from; give such a point a value, in a sweep of its own"
            return
        try:
            OmegaConf.update(cfg, argument.key, parsed_override(text).value())
        except HYDRA_ERRORS as error:
            yield f"{text}: {one_line(error)}"

    def _place(self, composed: Composed) -> str:
        """The setting that says where runs are, and its value."""
        kind, value = ("run", composed.run_dir) if self.alone else ("sweep", composed.sweep_dir)
        text = str(value)
        return f"hydra.{kind}.dir={shown(text)}"

    def _folder(self, composed: Composed, point: list[tuple[Argument, str]]) -> str | None:
        """Where a job's run is to be; None where only Hydra will know."""
        if self.alone:
            return composed.run_dir
        if composed.sweep_dir is None or not composed.names_folders:
            return composed.sweep_dir
        own = [text for argument, text in point if not is_hydras(argument)]
        return f"{composed.sweep_dir}/{folder_name(own, self.sweep.unnamed)}"

    def _unknown(self) -> set[str]:
        """The settings given by groups whose choice is wrong and nobody can guess."""
        arguments = [*self.typed, *self.sweep.added]
        riddles = {argument.key for argument in arguments if not argument.texts}
        if riddles <= Settings.model_fields.keys():
            return riddles
        # an experiment may give anything but what is typed
        return Settings.model_fields.keys() - {a.key for a in arguments if not a.composes}


def _of_others(settings: Settings, cfg: DictConfig, composed: Composed, out: str) -> Iterator[str]:
    """The mistake of a sweep into the folders of another, with other settings."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for point in specs_of(settings, {str(key): value for key, value in plain.items()}, Path(out)):
        if differs := other_run(point.out, point.config):
            yield taken(str(composed.sweep_dir), differs)


def _in_job(line: str, swept: list[str]) -> str:
    """A mistake, with the values that it comes with unless it names them."""
    typed = " ".join(swept).replace("\\", "")  # Hydra escapes some characters of what it reads
    return line if line.startswith(typed) else f"{line} (in the job with {typed})"


def _name(argument: Argument) -> str:
    return setting_name(argument.key)


def _no_such_setting(plain: Any, key: str, names: frozenset[str]) -> str:
    """`no such setting; did you mean ...?`, or how to add one where settings can be added."""
    *folders, _ = key.split(".")
    for folder in folders:
        plain = plain.get(folder) if isinstance(plain, dict) else None
    if folders and isinstance(plain, dict) and "_target_" not in plain:
        near = did_you_mean(key, [dotted(*folders, name) for name in plain])
        return f"no such setting; {f'did you mean {near}, or ' if near else ''}+{key}=VALUE to add it?"
    return no_such("setting", key, sorted(name for name in names if not name.endswith("_target_")))


def is_hydras(argument: Argument) -> bool:
    """Whether an argument is for Hydra, and no setting of a run."""
    return re.split("[./]", argument.key.lstrip("+~"))[0] == "hydra"
