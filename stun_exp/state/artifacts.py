"""The files that a run leaves in its folder, and the version of their form."""

SCHEMA = 3
"""Of report.json: one more whenever a reader of older reports would go wrong."""
