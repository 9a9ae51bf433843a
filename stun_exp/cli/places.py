"""Whether a run can be in a folder, known before anything is loaded."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from stun_exp.config.settings import WITHOUT_EFFECT

INSIDE = Path(".hydra/overrides.yaml")
"""What is made in every run's folder, before the run."""


def folder_refusal(folder: str) -> str:
    """Why no run can be in a folder, and what to do; "" if one can, for all that shows."""
    if "\0" in folder:
        return "no path may have a NUL in it; pass another folder"
    made = Path(folder).absolute() / INSIDE
    try:
        there = next(place for place in made.parents if os.path.lexists(place))
        if there.is_symlink() and not there.exists():
            return f"{there} is a link that leads nowhere; remove it, or pass another folder"
        if not there.is_dir():
            return f"{there} is a file, not a folder; pass another folder"
        name_bytes, path_bytes = (os.pathconf(there, f"PC_{limit}_MAX") for limit in ("NAME", "PATH"))
    except OSError as error:
        return f"cannot be looked at ({error.strerror}); pass another folder"
    if (longest := max(len(part.encode()) for part in made.parts)) > name_bytes:
        return f"a name of {longest} bytes is too long, a disk takes {name_bytes}; pass a shorter one"
    if (length := len(str(made).encode())) >= path_bytes:
        return f"a path of {length} bytes is too long, the system takes {path_bytes}; pass a shorter one"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} may not be written to; pass another folder"
    return ""


def not_made(error: OSError, setting: str) -> str:
    """Why Hydra could not make a run's folder, in a line."""
    where = "" if error.filename is None else f"{error.filename}: "
    return f"{where}cannot be written ({error.strerror or error}); choose another folder with {setting}=DIR"


def other_run(out: Path, config: Mapping[str, Any]) -> str:
    """What differs in the settings of the run that a folder holds, and could move its results; "" if nothing does.

    A dry run changes nothing there, and one that is to restart is to replace it.
    """
    if config["dry_run"] or config["resume"] == "restart":
        return ""
    try:
        there = yaml.safe_load((out / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):  # none, or one that was killed before it had written them all
        return ""
    if not isinstance(there, dict):
        return ""
    old, new = ({key: value for key, value in one.items() if key not in WITHOUT_EFFECT} for one in (there, config))
    return ", ".join(_differences(old, new))


def check_vacant(out: Path, config: Mapping[str, Any], sweep: str) -> None:
    """ValueError if a point of a sweep, in the folder of that name, would replace the run of another command."""
    if differs := other_run(out, config):
        raise ValueError(taken(sweep, differs))


def taken(sweep: str, differs: str) -> str:
    return (
        f"hydra.sweep.dir={sweep}: a run of that name has other settings there ({differs}); pass another "
        "hydra.sweep.dir, or resume=restart to replace it"
    )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path}: {old} -> {new}"
