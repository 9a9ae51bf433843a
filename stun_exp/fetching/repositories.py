"""Repositories of the hub, fetched into a cache of the hub's own layout: of a data set, no more than is read of it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stun_exp.data.reading import ENDINGS
from stun_exp.data.sets import DataSet

CARD = "README.md"
"""Says of which files each part of a data set consists."""


def fetch_data_set(name: str, parts: Iterable[DataSet], cache: Path) -> Path:
    """The snapshot of a data set that holds some parts of it."""
    folder = fetch_repository(name, None, [CARD], cache, "dataset")
    files = [pattern for part in parts for pattern in _files_of(part, folder)]
    return fetch_repository(name, None, [CARD, *dict.fromkeys(files)], cache, "dataset")


def fetch_repository(
    name: str, revision: str | None, files: Sequence[str], cache: Path, kind: str, ignored: Sequence[str] = ()
) -> Path:
    """The snapshot of a repository with its files of some patterns; ValueError if it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=list(ignored),
            cache_dir=cache,
        )
    except Exception as error:  # the hub client raises a dozen unrelated classes
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name}: cannot be fetched from the hub ({type(error).__name__}: {said}); if its owner asks for consent "
            "to terms, give it on its page and log in with `hf auth login`; if the connection broke, run the command "
            "again, which goes on"
        ) from error
    return Path(found)


def _files_of(part: DataSet, folder: Path) -> list[str]:
    """Patterns of the files that a part consists of; of all files of data where the card does not say."""
    if part.file is not None:
        return [part.file]
    configs = {config.get("config_name", "default"): config for config in _configs(folder / CARD)}
    chosen = configs.get(part.config or "default")
    if chosen is None or "data_files" not in chosen:
        inside = f"{part.config}/" if part.config and chosen is None and not configs else ""
        own = [f"{inside}*{ending}" for ending in ENDINGS]
        # A folder by the name of the part, where there is one; patterns that match nothing fetch nothing.
        return own if not inside else [*own, *(f"*{ending}" for ending in ENDINGS)]
    data_files = chosen["data_files"]
    entries = data_files if isinstance(data_files, list) else [data_files]
    paths = [entry["path"] if isinstance(entry, dict) else entry for entry in entries]
    return [one for path in paths for one in (path if isinstance(path, list) else [path])]


def _configs(card: Path) -> list[dict[str, Any]]:
    """What a card says of the parts of its data set."""
    from huggingface_hub import DatasetCard

    if not card.is_file():
        return []
    found = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
