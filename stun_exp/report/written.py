"""The files of a report in its folder: which of them it made, and so may replace or remove."""

import json
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath

from stun_exp.report.page import HEAD
from stun_exp.utils.files import write_file
from stun_exp.utils.json_files import read_json, read_regular

MANIFEST = "written.json"
"""In a report's folder: each file that was written there -> the sha256 of its content, or of both that it may have."""
INDEX_PAGE = "index.html"
WAY_OUT = "move it away, or choose another folder with --out"


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into a folder in place of those that were written there before, and removes of these what is left.

    What this did not write, or somebody has changed since, is never touched; where it has not to give way it stays,
    and a line says so.

    Args:
        folder: The report's.
        files: Their content by their names in the folder, with slashes.

    Raises:
        ValueError: A file of somebody's has to give way to one of these; nothing is written.
    """
    earlier = _earlier(folder)
    digests = {name: sha256(content).hexdigest() for name, content in files.items()}
    refusals = list(_in_the_way(folder, digests, earlier))
    if refusals:
        raise ValueError(refusals[0] + (f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""))
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    between = earlier | {name: _both(earlier.get(name), digest) for name, digest in digests.items()}
    write_file(folder / MANIFEST, [_json(between)])  # whatever happens now, it is known what is ours
    for name in earlier.keys() - digests.keys():
        _remove(folder, name, earlier[name])
    for name, content in files.items():
        write_file(folder / name, [content])
    write_file(folder / MANIFEST, [_json(digests)])


def _earlier(folder: Path) -> dict[str, str]:
    """What the manifest says; ValueError for one that none of ours is."""
    file = folder / MANIFEST
    if not _is_there(file):
        return {}
    try:
        content = None if file.is_symlink() else read_json(file)
    except (ValueError, OSError):
        content = None
    if not isinstance(content, dict) or not all(_inside(name) and isinstance(content[name], str) for name in content):
        raise ValueError(f"{file}: not the list of a report's files; {WAY_OUT}")
    return content


def _in_the_way(folder: Path, digests: Mapping[str, str], earlier: Mapping[str, str]) -> Iterator[str]:
    """Why not all files can be written, a line for each that cannot."""
    taken_over = not _is_there(folder / MANIFEST) and _is_older_report(folder)
    blocked = dict.fromkeys(why for name in (*digests, MANIFEST) if (why := _blocked(folder, name)))
    yield from blocked
    if blocked:
        return
    for name, digest in digests.items():
        file = folder / name
        if taken_over or not file.exists():
            continue
        found = sha256(read_regular(file)).hexdigest()
        if found == digest or found in earlier.get(name, "").split():
            continue
        whose = "changed since it was written" if name in earlier else "there already, and not written by a report"
        yield f"{file}: {whose}; {WAY_OUT}"


def _blocked(folder: Path, name: str) -> str | None:
    """Why no file can have this name: for a link in its path, or something else in the place of a file or a folder."""
    file = folder / name
    for parent in [folder, *(folder / step for step in reversed(PurePosixPath(name).parents) if step.name)]:
        if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
            what = "a link" if parent.is_symlink() else "no folder"
            return f"{parent}: {what}, where a report's folder is to be; {WAY_OUT}"
    for place in (file, file.with_name(f"{file.name}.partial")):
        if place.is_symlink() or (place.exists() and not place.is_file()):
            what = "a link" if place.is_symlink() else "no regular file"
            return f"{place}: {what}, where a report's file is to be; {WAY_OUT}"
    return None


def _is_older_report(folder: Path) -> bool:
    """Whether the page of a report from before there were manifests is there: files of a report's names are its own."""
    index = folder / INDEX_PAGE
    return index.is_file() and not index.is_symlink() and index.read_bytes().startswith(HEAD.encode())


def _remove(folder: Path, name: str, digest: str) -> None:
    """Removes a file that was written and is none of the report any more, unless it is somebody's by now."""
    file = folder / name
    if not _is_there(file):
        return
    if _blocked(folder, name) is None and sha256(read_regular(file)).hexdigest() in digest.split():
        file.unlink()
    else:
        print(f"{file}: changed since it was written, so it is left, beside the new report", file=sys.stderr)


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.name)


def _is_there(file: Path) -> bool:
    return file.is_symlink() or file.exists()


def _both(earlier: str | None, digest: str) -> str:
    """What a file may hold while it is replaced: what it held, and what it is to hold."""
    return " ".join(dict.fromkeys([*(earlier or "").split(), digest]))


def _json(manifest: Mapping[str, str]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
