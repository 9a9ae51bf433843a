"""Settings that some points of a sweep have and others lack: used where they exist, and named where they do not.

Hydra composes all points from one list of overrides, and refuses a setting that a point lacks. So it is given such a
setting to add (`++KEY=VALUE`), and what it then hands to its launcher is freed of it where the choices have none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any, NamedTuple

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from stun_exp.cli.composing import HYDRA_ERRORS, MOST_CONFIGS, Composed, names_in
from stun_exp.cli.overrides import Argument, parsed_override, setting_name

ADDED = "++"
"""Before an override of Hydra's that adds what is not there."""


Lacks = list[tuple[str, str]]
"""Points, and what each of them lacks."""


@dataclass(frozen=True)
class PartialSetting:
    """A setting that was typed for a sweep, and that not all of its points have."""

    given: str
    key: str
    axes: frozenset[str]
    """The choices that are swept over and say whether a point has it."""

    def point(self, overrides: Iterable[str]) -> str:
        """Those of a point's overrides that say whether it has the setting."""
        return " ".join(text for text in overrides if text.partition("=")[0] in self.axes)

    def without_effect(self, lacks: Lacks) -> str:
        """What to say of points, and of what each of them lacks."""
        points: dict[str, list[str]] = {}
        for point, lack in lacks:
            if point not in points.setdefault(lack, []):
                points[lack].append(point)
        where = "; ".join(f"{', '.join(those)} ({lack})" for lack, those in points.items())
        return f"{self.given}: without effect in {where}"


def lack(key: str, choices: Mapping[str, str | None]) -> str:
    """Which part of a point has no such setting: `expert_pruner=none has no ratio`."""
    group, _, name = key.partition(".")
    return f"{group}={choices[group]} has no {name}" if group in choices else f"there is no {key}"


class _Choices(NamedTuple):
    """What one combination of choices comes to."""

    names: frozenset[str]
    chosen: Mapping[str, str | None]


def partial_settings(
    arguments: Sequence[Argument], compose: Callable[[tuple[str, ...]], Composed], groups: frozenset[str]
) -> list[tuple[PartialSetting, Lacks]]:
    """The settings that some points of a sweep have and others lack, with what to say of those.

    What no point has is a mistake, and none of these.
    """
    choosing = [argument for argument in arguments if argument.composes and argument.texts]
    typed = [argument for argument in arguments if not argument.composes and argument.texts]
    points = _composed([*_one_by_one(choosing)], compose, groups)
    if not any(_is_partial(argument, points) for argument in typed):
        return []
    if prod(len(argument.texts) for argument in choosing) <= MOST_CONFIGS:
        points = _composed(product(*(argument.texts for argument in choosing)), compose, groups)
    found = []
    for argument in typed:
        if _is_partial(argument, points):
            has = {point: setting_name(argument.key) in choices.names for point, choices in points.items()}
            axes = frozenset(axis.key for place, axis in enumerate(choosing) if _matters(place, has))
            setting = PartialSetting(argument.given, argument.key, axes)
            lacking = [point for point in points if not has[point]]
            found.append(
                (setting, [(setting.point(point), lack(argument.key, points[point].chosen)) for point in lacking])
            )
    return found


def _one_by_one(choosing: Sequence[Argument]) -> Iterator[tuple[str, ...]]:
    """The first value of all choices, and each further value of one beside the first of the others."""
    first = tuple(argument.texts[0] for argument in choosing)
    yield first
    for place, argument in enumerate(choosing):
        for text in argument.texts[1:]:
            yield (*first[:place], text, *first[place + 1 :])


def _composed(
    points: Iterable[tuple[str, ...]], compose: Callable[[tuple[str, ...]], Composed], groups: frozenset[str]
) -> dict[tuple[str, ...], _Choices]:
    found = {}
    for point in points:
        with suppress(*HYDRA_ERRORS):  # the check tells them
            composed = compose(point)
            found[point] = _Choices(groups | names_in(composed.cfg), composed.hydra.hydra.runtime.choices)
    return found


def _is_partial(argument: Argument, points: Mapping[tuple[str, ...], _Choices]) -> bool:
    return len({setting_name(argument.key) in choices.names for choices in points.values()}) == 2


def _matters(place: int, has: Mapping[tuple[str, ...], bool]) -> bool:
    """Whether two points that differ in nothing but the choice at this place differ in having a setting."""
    beside: dict[tuple[str, ...], set[bool]] = {}
    for point, it_has in has.items():
        beside.setdefault((*point[:place], *point[place + 1 :]), set()).add(it_has)
    return any(len(both) == 2 for both in beside.values())


def warnings_for(
    settings: Iterable[PartialSetting], overrides: Sequence[str], choices: Mapping[str, str | None]
) -> tuple[str, ...]:
    """What the report of one point says of settings that were typed for its sweep and that it lacks."""
    has = {_key(text) for text in overrides}
    lacking = [setting for setting in settings if setting.key not in has]
    return tuple(one.without_effect([(one.point(overrides), lack(one.key, choices))]) for one in lacking)


@contextmanager
def left_out_where_lacking(settings: Sequence[PartialSetting]) -> Iterator[None]:
    """Hydra's launchers, in the block, run each point without the settings that it lacks, and equal points once.

    The task is told of the settings, for its reports.
    """
    instantiate = Plugins.instantiate_launcher

    def wrapped(
        self: Plugins, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> Launcher:
        task: Callable[..., Any] = task_function
        launcher = instantiate(self, hydra_context, partial(task, settings=tuple(settings)), config)
        return _PointLauncher(launcher, hydra_context, config, frozenset(setting.key for setting in settings))

    # The one place where every sweeper gets its launcher.
    Plugins.instantiate_launcher = wrapped  # type: ignore[method-assign]
    try:
        yield
    finally:
        Plugins.instantiate_launcher = instantiate  # type: ignore[method-assign]


@dataclass(frozen=True)
class _PointLauncher(Launcher):
    """A launcher that hands on each point without the settings that it lacks, and equal points once."""

    inner: Launcher
    context: HydraContext
    config: DictConfig
    keys: frozenset[str]

    def setup(self, **kwargs: Any) -> None:
        raise AssertionError("the launcher within is set up already")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        points = [self._with_effect(job) for job in job_overrides]
        apart = list(dict.fromkeys(points))
        results = self.inner.launch([list(point) for point in apart], initial_job_idx=initial_job_idx)
        result_of = dict(zip(apart, results, strict=True))
        return [result_of[point] for point in points]

    def _with_effect(self, job: Sequence[str]) -> tuple[str, ...]:
        """A job's overrides as they were typed, without those that add what its choices have not."""
        typed = {text: text.removeprefix(ADDED) for text in job if self._is_partial(text)}
        shared = [text for text in job if text not in typed]
        names = names_in(self.context.config_loader.load_sweep_config(self.config, shared))
        lacking = {text for text in typed if setting_name(_key(text)) not in names}
        return tuple(typed.get(text, text) for text in job if text not in lacking)

    def _is_partial(self, text: str) -> bool:
        return text.startswith(ADDED) and _key(text) in self.keys


def _key(text: str) -> str:
    return parsed_override(text).key_or_group
