"""Data sets as a run needs them, and the folders of this machine that may hold them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stun_exp.data.hub import datasets_cache, hub_cache


@dataclass(frozen=True)
class DataSet:
    """What is read of a data set of the hub."""

    name: str
    """owner/name."""
    config: str | None = None
    """One of its parts, as it calls them; None if it has but one."""
    file: str | None = None
    """One file of it, where no more is read."""

    def __str__(self) -> str:
        part = self.config or self.file
        return f"{self.name} ({part})" if part else self.name


def snapshot(name: str, cache: Path, kind: str = "datasets") -> Path | None:
    """The folder of a repository in a hub cache: the commit that its branch main was at, or else the newest."""
    root = cache / f"{kind}--{name.replace('/', '--')}"
    try:
        main = root / "snapshots" / (root / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        main = root / "snapshots"
    if main != root / "snapshots" and main.is_dir():
        return main
    others = [folder for folder in (root / "snapshots").glob("*") if folder.is_dir()]
    return max(others, key=lambda folder: folder.stat().st_mtime, default=None)


def folders_of(name: str, given: Path | None) -> Iterator[Path]:
    """Where a data set lies: in a folder with folders of data sets, if one is `given`, and in the hub's cache."""
    if given is not None:
        yield from (folder for folder in (given / name, given / name.rpartition("/")[2]) if folder.is_dir())
    caches = [hub_cache()] if given is None else [given, given / "hub", hub_cache()]
    yield from (found for cache in caches if (found := snapshot(name, cache)) is not None)


def places(setting: str, given: Path | None) -> tuple[str, ...]:
    """The same in words, `given` by a setting; and where the datasets library keeps what it has loaded."""
    own = () if given is None else (f"{setting}={given} (OWNER/NAME, NAME, or as in the hub's cache)",)
    return (*own, f"{hub_cache()}/datasets--OWNER--NAME/snapshots", str(datasets_cache()))
