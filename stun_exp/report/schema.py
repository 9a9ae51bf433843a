"""The form of report.json."""

SCHEMA = 2
"""One more whenever a reader of older reports would go wrong."""
