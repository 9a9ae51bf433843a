"""The places for components in the settings, and what a component must have to fit one."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from inspect import get_annotations
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from stun_exp.config.component import Component

_HAVE_NOTHING = {object, *BaseModel.__mro__, Component}
"""Bases whose members say nothing of what a component is for."""


@dataclass(frozen=True)
class Slot:
    """Marks a field that takes a component; it must have the public members of the field's type."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # What else it must be, `misfit` says in words of our own.
        return core_schema.is_instance_schema(Component)


@dataclass(frozen=True)
class Since:
    """Says which stage of a run a setting affects first, with all that come after it; None for no result at all."""

    stage: str | None


def kinds_of(settings: type[Component]) -> dict[str, type]:
    """For each slot of the settings, the type whose members a component there must have."""
    slots: dict[str, type] = {}
    for name, field in settings.model_fields.items():
        if any(isinstance(mark, Slot) for mark in field.metadata):
            assert isinstance(field.annotation, type)
            slots[name] = field.annotation
    return slots


@cache
def members(kind: type) -> frozenset[str]:
    """The public methods, properties and settings that a class or a protocol defines."""
    bases = [base for base in kind.__mro__ if base not in _HAVE_NOTHING and base.__module__ != "typing"]
    names = {name for base in bases for name in (*vars(base), *get_annotations(base))}
    return frozenset(name for name in names if not name.startswith("_") and not hasattr(Component, name))


def lacking(component: type[Component], kind: type) -> list[str]:
    """What a component has not of what it needs, or leaves to its subclasses; a method must be one, a value none."""
    needed, has = members(kind), members(component)
    absent = {name for name in needed if name not in has or _is_method(component, name) != _is_method(kind, name)}
    abstract: frozenset[str] = getattr(component, "__abstractmethods__", frozenset())
    return sorted(absent | abstract)


def _is_method(owner: type, name: str) -> bool:
    return callable(getattr(owner, name, None))  # a setting is on instances alone


def misfit(component: type[Component], slot: str, slots: Mapping[str, type]) -> str:
    """Why a component cannot be in a slot, and where it could, in a line; "" if it can, or the slot takes any."""
    if slot not in slots or not (lacks := lacking(component, slots[slot])):
        return ""
    own = [other for other, kind in slots.items() if not lacking(component, kind)]
    elsewhere = f"it is for {' or '.join(own)}; " if own else ""
    needed = f"{slots[slot].__module__}.{slots[slot].__qualname__}"
    return f"has no {', '.join(lacks)}; {elsewhere}{slot} needs what {needed} has, pass {slot}=NAME"
