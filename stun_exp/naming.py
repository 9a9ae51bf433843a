"""Names of runs, where a name has a longest length."""

from hashlib import sha256

FOLDER_BYTES = 255
"""On the disks that are common."""


def folder_name(overrides: str) -> str:
    """What a run of a sweep is told apart by, as the name of its folder: with no slash, and not too long for a disk."""
    name = overrides if "/" not in overrides else f"{overrides.replace('/', '_')}-{_digest(overrides)}"
    return shortened(name, FOLDER_BYTES)


def shortened(name: str, most: int) -> str:
    """A name of at most so many bytes; one that is cut ends in its hash, and so differs from others that are."""
    if len(name.encode()) <= most:
        return name
    digest = _digest(name)
    return f"{name.encode()[: most - len(digest) - 1].decode(errors='ignore')}-{digest}"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]
