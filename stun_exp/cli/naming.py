"""Names of runs, where a name has a longest length."""

from collections.abc import Iterable

from stun_exp.cli.overrides import parsed_override
from stun_exp.utils.names import short_digest, shortened

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


def run_name(structured: str, experts: str, *others: str) -> str:
    """What a run is called unless it is told: the choices of its pruners; a first stage that does nothing is one."""
    first = [experts] if structured == "none" else [structured] if experts == "none" else [structured, experts]
    return "-".join([*first, *others])


def _short(override: str) -> str:
    """An override whose value, if that is a path, is its last part and a hash of the whole."""
    key, equals, value = override.replace("\\", "").partition("=")  # Hydra escapes some characters, a colon for one
    if "/" in value:
        value = f"{value.rstrip('/').rpartition('/')[2].strip(QUOTES)}-{short_digest(value)}"
    return f"{key.replace('/', '_')}{equals}{value}"
