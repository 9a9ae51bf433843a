"""Names of runs, where a name has a longest length."""

from collections.abc import Iterable
from hashlib import sha256

from stun_exp.cli.overrides import parsed_override

FOLDER_BYTES = 255
"""On the disks that are common."""
QUOTES = "'\""


def folder_name(overrides: Iterable[str], unnamed: Iterable[str]) -> str:
    """What a run of a sweep is told apart by, as the name of its folder: KEY=VALUE,KEY=VALUE without `unnamed` keys.

    It has no slash, and is not too long for a disk.
    """
    left_out = set(unnamed)
    named = [_short(text) for text in overrides if parsed_override(text).key_or_group not in left_out]
    return shortened(",".join(sorted(named)), FOLDER_BYTES)


def _short(override: str) -> str:
    """An override whose value, if that is a path, is its last part and a hash of the whole."""
    key, equals, value = override.replace("\\", "").partition("=")  # Hydra escapes some characters, a colon for one
    if "/" in value:
        value = f"{value.rstrip('/').rpartition('/')[2].strip(QUOTES)}-{_digest(value)}"
    return f"{key.replace('/', '_')}{equals}{value}"


def shortened(name: str, most: int) -> str:
    """A name of at most so many bytes; one that is cut ends in its hash, and so differs from others that are."""
    if len(name.encode()) <= most:
        return name
    digest = _digest(name)
    return f"{name.encode()[: most - len(digest) - 1].decode(errors='ignore')}-{digest}"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]
