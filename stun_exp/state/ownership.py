"""What a run may remove and write over in its folder: what runs have written there, and nothing else.

A journal says which files those are, before they are written.
"""

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from stun_exp.utils.files import PARTIAL

FOLDERS = ("checkpoint", "recovery", "shots", "structured")
"""Folders in a run's folder that hold nothing but what the run has made."""


def check_folder(out: Path, source: Path, own: Collection[str], names: Collection[str]) -> None:
    """ValueError if a run cannot use its folder without harm to what is somebody else's.

    That is the folder of the model, and files that no run has written (`own`) where this one is to write (`names`).
    """
    if out.resolve() == source.resolve():
        raise ValueError(
            f"hydra.run.dir={out}: is the folder of model.path; a run leaves its files in a folder of its own: choose "
            "another one"
        )
    for name in FOLDERS:
        folder = out / name
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise ValueError(
                f"{folder}: is a link or a file, and a run makes a folder of that name; remove it, or choose another "
                "folder with hydra.run.dir=DIR"
            )
        if source.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"hydra.run.dir={out}: model.path={source} lies in {folder}, where the run is to write; choose another "
                "folder with hydra.run.dir=DIR"
            )
        there = [file.relative_to(out).as_posix() for file in _files(folder)]
        _refuse(out, [name for name in there if name.removesuffix(PARTIAL) not in own and name not in own])
    check_free(out, set(names) - set(own))
    _refuse(out, sorted(name for name in _with_partial(own) if is_odd(out / name)))


def check_free(out: Path, names: Iterable[str]) -> None:
    """ValueError if one of the files is there, or begun: somebody else has written it."""
    _refuse(out, sorted(name for name in _with_partial(names) if os.path.lexists(out / name)))


def is_there(out: Path, name: str) -> bool:
    """Whether a file is there, or was being written when a run was killed."""
    return any(os.path.lexists(out / one) for one in _with_partial([name]))


def _with_partial(names: Iterable[str]) -> list[str]:
    return [one for name in names for one in (name, f"{name}{PARTIAL}")]


def is_odd(file: Path) -> bool:
    """Whether something is there that no run has made: a link, a folder, a pipe in the place of a file."""
    return os.path.lexists(file) and (file.is_symlink() or not file.is_file())


def _refuse(out: Path, foreign: list[str]) -> None:
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ValueError(
            f"{out / foreign[0]}{more}: the run is to write there, and no run has written that file; move it away, or "
            "choose another folder with hydra.run.dir=DIR"
        )


def remove(out: Path, names: Iterable[str], keep: Collection[str] = ()) -> None:
    """Removes files of which a run's journal says that they are its own, but for some, and folders that this empties.

    What was being written under one of those names when a run was killed goes in any case.
    """
    emptied: set[Path] = set()
    for name in names:
        if ".." in Path(name).parts or not (out / name).parent.resolve().is_relative_to(out.resolve()):
            continue  # behind a link that somebody has put there
        emptied |= {out / folder for folder in Path(name).parents if folder.parts and folder.parts[0] in FOLDERS}
        for file in (f"{name}{PARTIAL}", *([] if name in keep else [name])):
            (out / file).unlink(missing_ok=True)
    for folder in sorted(emptied, reverse=True):
        with suppress(OSError):  # something else is in it, or it is not there
            folder.rmdir()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
