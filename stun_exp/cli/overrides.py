"""The overrides of a command line, read one by one: what each one sets, sweeps over or chooses."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, OverrideType
from hydra.errors import OverrideParseException

from stun_exp.config.errors import did_you_mean

CONFIG_NAME = "config"


@dataclass(frozen=True)
class Argument:
    """One override; `texts` is what Hydra reads for each value it sweeps over, one text if it is no sweep.

    Of an interval they are its ends.
    """

    given: str
    key: str
    texts: tuple[str, ...]
    composes: bool  # it says what is composed (a choice, an addition, hydra.*), not what a setting is
    sweeps: bool = False
    rewritten: str = ""  # the override to run in place of `given`, if that is another


class ConfigGroups:
    """The config groups and their choices, folders within a group included."""

    def __init__(self, loader: ConfigLoader, overrides: Iterable[str]) -> None:
        self._loader = loader
        self._search_path = [text for text in overrides if text.startswith("hydra.searchpath=")]
        self.names = frozenset(self._found("", ObjectType.GROUP)) - {"hydra"}

    def choices(self, group: str) -> list[str]:
        """Every choice of `group`: `none`, `stun`, `demo/unpruned`."""
        folders = self._found(group, ObjectType.GROUP)
        nested = [f"{folder}/{choice}" for folder in folders for choice in self.choices(f"{group}/{folder}")]
        return self._found(group, ObjectType.CONFIG) + nested

    def _found(self, group: str, kind: ObjectType) -> list[str]:
        return self._loader.get_group_options(group, kind, CONFIG_NAME, self._search_path)


def setting_name(key: str) -> str:
    """A setting's dotted name, however its key is written: `layers.0` for `layers[0]`."""
    return key.replace("[", ".").replace("]", "")


@cache
def parsed_override(text: str) -> Override:
    """The override that Hydra reads in `text`."""
    return OverridesParser.create().parse_overrides([text])[0]


def read(texts: Iterable[str], groups: ConfigGroups) -> tuple[list[Argument], list[str]]:
    """(The arguments in `texts`, their mistakes that show without composing anything).

    A wrong choice is replaced by the one probably meant, so that the rest can still be checked with it; an
    argument without any such has no texts.
    """
    arguments: list[Argument] = []
    mistakes: list[str] = []
    for text in texts:
        try:
            override = parsed_override(text)
        except OverrideParseException as error:
            mistakes.append(f"{text}: {_unreadable(error, text)}")
            continue
        key, value = override.key_or_group, override.value()
        changes = override.type == OverrideType.CHANGE and override.package is None
        is_choice = key in groups.names and changes and not isinstance(value, dict)
        composes = is_choice or not changes or re.split(r"[./]", key)[0] == "hydra"
        argument = Argument(text, override.get_key_element(), (text,), composes, override.is_sweep_override())
        if is_choice:
            argument = _chosen(argument, override, groups.choices(key), mistakes)
        elif override.is_discrete_sweep():
            swept = tuple(override.sweep_string_iterator())
            argument = replace(argument, texts=tuple(f"{argument.key}={value}" for value in swept))
        elif isinstance(value, IntervalSweep):  # for other sweepers than Hydra's own, which says so itself
            argument = replace(argument, texts=tuple(f"{argument.key}={end}" for end in (value.start, value.end)))
        arguments.append(argument)
    return arguments, mistakes


def _unreadable(error: OverrideParseException, text: str) -> str:
    """Why Hydra cannot read `text`, and what to write."""
    if "=" not in text:
        return "is no setting; write KEY=VALUE"
    told = [line for line in str(error).splitlines() if not line.startswith(("See ", "Error parsing"))]
    why = " ".join(told).split(" expecting ")[0]
    return f"cannot be read, {why}; put quotes around a text with odd characters, \"KEY='A=B'\""


def _chosen(argument: Argument, override: Override, choices: list[str], mistakes: list[str]) -> Argument:
    """`argument` with its choices among `choices`; what is not there is a line in `mistakes`."""
    value, key = override.value(), argument.key
    if isinstance(value, Glob):
        # Hydra's own glob sees no folders and runs zero jobs; like a shell's, this one's * does not match a /
        depths = {pattern.count("/") for pattern in value.include}
        found = [choice for choice in value.filter(choices) if choice.count("/") in depths]
        if not found:
            mistakes.append(f"{argument.given}: matches nothing (choices: {', '.join(choices)})")
        return replace(argument, texts=tuple(f"{key}={name}" for name in found), rewritten=f"{key}={','.join(found)}")
    if argument.sweeps:
        names = list(override.sweep_string_iterator())
    else:
        given = override.get_value_element_as_str()
        names = [str(name) for name in value] if isinstance(value, list) else [given]
    meant = []
    for name in names:
        choice = name.strip("'\"").removesuffix(".yaml")
        guess = choice if choice in choices else did_you_mean(choice, choices)
        if guess != choice:
            hint = f"; did you mean {guess}?" if guess else ""
            mistakes.append(f"{key}={name}: no such choice{hint} (choices: {', '.join(choices)})")
        if guess:
            meant.append(guess)
    if argument.sweeps or len(names) == 1:
        return replace(argument, texts=tuple(f"{key}={name}" for name in meant))
    return replace(argument, texts=(f"{key}=[{','.join(meant)}]",) if meant else ())
