"""The form of report.json: what its readers need of it."""

from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from stun_exp.report.data.forms import LARGEST_WHOLE, ReportForm
from stun_exp.state.artifacts import SCHEMA
from stun_exp.utils.names import shortened

DEEPEST_NESTING = 32
"""Levels of nesting; a report has a third of that."""
_SAID = {
    "missing": "missing",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "too_short": "must not be empty",
}


_FORM = TypeAdapter(ReportForm)


def why_unusable(report: Any) -> str | None:
    """Why something is no report that can be read here, with the place of what is wrong in it; None if it is one."""
    if not isinstance(report, dict):
        return "no report"
    if (schema := report.get("schema")) != SCHEMA:
        age = "before schemas were numbered" if schema is None else f"of schema {shortened(ascii(schema), 20)}"
        return f"a report {age}, and this version reads schema {SCHEMA}; run it again"
    if where := _unwritable(report, ()):
        return f"damaged, {where}"
    try:
        _FORM.validate_python(report)
    except ValidationError as error:
        first, *others = [f"{_place(one['loc'])}: {_said(one)}" for one in error.errors(include_url=False)]
        return f"damaged, {first}" + (f", and {len(others)} more" if others else "")
    before, after = (report["experts"][side] for side in ("before", "after"))
    if len(before) != len(after) or (before and not sum(before)):
        return "damaged, experts.after: must have a number for each of experts.before, which are not all 0"
    if report["metrics"] and "lm-eval" not in report["provenance"]["versions"]:
        return "damaged, provenance.versions.lm-eval: missing"
    return None


def _unwritable(node: Any, place: tuple[Any, ...]) -> str | None:
    """Where something is that no file could hold, or that goes too deep, and what; None if all is well."""
    if len(place) > DEEPEST_NESTING:
        return f"{_place(place[:3])}: nested more than {DEEPEST_NESTING} levels deep"
    if isinstance(node, dict | list):
        inside = node.items() if isinstance(node, dict) else enumerate(node)
        found = (_unwritable(key, place) or _unwritable(value, (*place, key)) for key, value in inside)
        return next((why for why in found if why), None)
    if isinstance(node, str) and any("\ud800" <= letter <= "\udfff" for letter in node):
        return f"{_place(place)}: half of a character"
    if isinstance(node, int) and abs(node) > LARGEST_WHOLE:
        return f"{_place(place)}: must be a number of at most 18 digits"
    return None


def _place(steps: tuple[Any, ...]) -> str:
    return shortened(".".join(str(step).encode(errors="replace").decode() for step in steps), 200) or "report"


def _said(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"must be {'at least' if kind[0] == 'g' else 'at most'} {error['ctx']['ge' if kind[0] == 'g' else 'le']}"
    return _SAID.get(kind, error["msg"])
