"""What a run needs and this machine has not: told in one error, with the command that fetches it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stun_exp.data.hub import why_unreachable


@dataclass(frozen=True)
class Missing:
    """One thing that is not there."""

    name: str
    """A repository of the hub, with the part of it that is needed."""
    group: str
    """The group of settings that asks for it: model, eval or calibration."""
    places: tuple[str, ...]
    """Where it was looked for."""
    why: str = ""
    """Why it is not to be had from a hub that answers."""
    setting: str = ""
    """What the command that fetches it needs besides the choice in its group."""


class MissingData(FileNotFoundError):
    """Models and data sets that are not on this machine, and not to be had from the hub."""

    def __init__(self, missing: Sequence[Missing]):
        super().__init__(in_words(missing, {}))
        self.missing = tuple(missing)


def in_words(missing: Sequence[Missing], choices: Mapping[str, str | None]) -> str:
    """All that is missing, where it was looked for, and how it is fetched; `choices` are the run's, by group."""
    names = ", ".join(dict.fromkeys(_with_parts(missing)))
    places = "; ".join(dict.fromkeys(place for one in missing for place in one.places))
    groups = [f"{one.group}={choices.get(one.group) or 'CHOICE'}" for one in missing]
    chosen = " ".join(dict.fromkeys(filter(None, [*groups, *(one.setting for one in missing)])))
    whys = "; ".join(dict.fromkeys(one.why or why_unreachable() for one in missing))
    return (
        f"not on this machine: {names}; {whys}\n"
        f"       looked for in {places}\n"
        f"       on a machine with a network, `stun fetch {chosen} --to DIR` brings all that such a run reads into one "
        "folder; take it along and set HF_HOME=DIR, or make another choice (eval=none, calibration=local)"
    )


def _with_parts(missing: Sequence[Missing]) -> list[str]:
    """The names, those that differ only in their parts as one: `cais/mmlu (anatomy, astronomy)`."""
    parts: dict[str, list[str]] = {}
    for one in missing:
        name, _, part = one.name.partition(" (")
        parts.setdefault(name, []).extend([part.removesuffix(")")] if part else [])
    return [f"{name} ({_shortened(list(dict.fromkeys(inside)))})" if inside else name for name, inside in parts.items()]


def _shortened(parts: list[str]) -> str:
    return ", ".join(parts) if len(parts) <= 4 else f"{', '.join(parts[:3])} and {len(parts) - 3} more parts"
