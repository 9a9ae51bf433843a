"""How a mistake in a config is told: the setting, its value, the limit, and the way out."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

LONGEST_SHOWN = 100
"""Characters of a value in a line that says what is wrong with it."""
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list [A,B]",
    "tuple": "a list [A,B]",
    "dict": "a mapping {KEY:VALUE}",
    "none": "null",
}
_BOUNDS = {"ge": "at least", "gt": "above", "lt": "below", "le": "at most"}


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The member of `known` that was probably meant by `wrong`, or ""; both may have folders, by . or /."""
    places = {name: _place(name) for name in known}
    folder, leaf = _place(wrong)
    beside = {name: place[1] for name, place in places.items() if place[0] == folder}
    if near := get_close_matches(leaf, beside.values(), n=1, cutoff=0.65):
        return next(name for name in beside if beside[name] == near[0])
    # `ratio=0.5` for `expert_pruner.ratio=0.5`, `experiment=unpruned` for `experiment=demo/unpruned`
    same_leaf = [name for name, place in places.items() if place[1] == leaf]
    as_deep = [name for name in places if len(re.split(r"[./]", name)) == len(re.split(r"[./]", wrong))]
    near = get_close_matches(wrong, same_leaf, n=1, cutoff=0)
    near = near or get_close_matches(wrong, [] if beside else as_deep, n=1, cutoff=0.7)
    return near[0] if near else ""


def no_such(what: str, wrong: str, known: Iterable[str]) -> str:
    """`no such setting; did you mean seed?`, or what there is in that place if nothing is near."""
    known = list(known)
    if near := did_you_mean(wrong, known):
        return f"no such {what}; did you mean {near}?"
    beside = [_place(name)[1] for name in known if _place(name)[0] == _place(wrong)[0]]
    return f"no such {what}; there is {', '.join(beside) or 'none here'}"


def _place(name: str) -> tuple[str, str]:
    """(Where `name` is, what it is called there)."""
    *folders, leaf = re.split(r"[./]", name)
    return ".".join(folders), leaf


def shown(value: Any) -> str:
    """`value` as typed on the command line, its beginning if it is long; text that could be another thing is quoted."""
    text = _typed(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _typed(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        plain = re.fullmatch(r"(?!(?i:true|false|null|nan|inf)$)[A-Za-z_/][\w./:-]*", value)
        return value if plain else repr(value)
    return str(value).lower() if isinstance(value, bool) else re.sub(r"\s+", " ", str(value))


def dotted(*parts: Any) -> str:
    """The parts of a setting's name as one: `expert_pruner.ratio`."""
    return ".".join(str(part) for part in parts if part != "")


def described(detail: ErrorDetails, model: type[BaseModel], values: Any, path: str) -> tuple[str, str]:
    """One error of `model` at `path`, as (the setting and its value, what is wrong and what to do)."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "missing":
        where = dotted(path, *detail["loc"])
        return where, f"required; pass +{where}=VALUE" if path else f"required; pass {where}=VALUE"
    steps = _steps_in(values, detail["loc"])
    where = dotted(path, *steps)
    if kind == "extra_forbidden":
        known = [dotted(path, *steps[:-1], name) for name in model.model_fields]
        return where, no_such("setting", where, known)
    if kind == "is_instance_of":  # a root component that is not one
        off = f"; {where}=none turns it off" if value is None else ""
        return f"{where}={shown(value)}", f"needs a choice, pass {where}=NAME{off}"
    if kind == "model_type":  # a component within another
        given = f"{where}._target_={type(value).__module__}.{type(value).__qualname__}"
        return given if isinstance(value, BaseModel) else where, f"must be a component {context['class_name']}"
    if kind == "value_error":  # a component's own check; one of the whole component shows no value
        return f"{where}={shown(value)}" if steps else where, str(context["error"])
    where = f"{where}={shown(value)}"
    if "expected" in context:
        near = did_you_mean(str(value), re.findall(r"'([^']*)'", context["expected"]))
        return where, f"must be {context['expected']}" + (f"; did you mean {near}?" if near else "")
    if context.keys() & _BOUNDS.keys():
        metadata = model.model_fields[str(steps[0])].metadata if len(steps) == 1 else []
        limits = [f"{word} {getattr(m, b)}" for m in metadata for b, word in _BOUNDS.items() if hasattr(m, b)]
        limits = limits or [f"{word} {context[b]}" for b, word in _BOUNDS.items() if b in context]
        return where, f"must be {' and '.join(limits)}"
    expected = _KINDS.get(kind.partition("_")[0])
    if expected == "text" and isinstance(value, int | float):
        expected = f"text; pass \"{dotted(path, *steps)}='{shown(value)}'\""
    return where, f"must be {expected}" if expected else detail["msg"][0].lower() + detail["msg"][1:]


def _steps_in(values: Any, loc: tuple[int | str, ...]) -> list[int | str]:
    """The part of `loc` that leads into `values`; pydantic ends it with the names of union branches."""
    steps: list[int | str] = []
    for step in loc:
        is_key = isinstance(values, Mapping) and step in values
        if not is_key and not (isinstance(values, list | tuple) and step in range(len(values))):
            break
        steps.append(step)
        values = values[step]
    return steps
