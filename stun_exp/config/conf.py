"""Where the configs lie."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# In a wheel the configs lie in the package, in a checkout beside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
