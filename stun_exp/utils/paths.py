"""Paths as settings give them: any text may be typed, and none makes the check of it fail."""

import os.path
from contextlib import suppress
from pathlib import Path

# os.path.isfile and isdir say no of names that are too long, or have a NUL in them; Path's methods raise.
is_file, is_folder = os.path.isfile, os.path.isdir


def expanded(path: str) -> Path:
    """The path that a text means, its `~` replaced where there is such a user."""
    with suppress(ValueError):  # a NUL in the user's name
        return Path(os.path.expanduser(path))
    return Path(path)
