"""What every component of a run is: a frozen, strictly typed record of its settings, plus its methods."""

from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Component(BaseModel):
    """A part of a run (a pruner, a calibration set, ...): its fields are its settings, its methods the work.

    Strict: text is no number, 1.5 and true are no int; 1 is a float, because YAML people write `1` for 1.0.
    Fields have no defaults here: the values live in `conf/`. Import torch inside methods, not at the top of
    the module, because every component of a run is built before anything heavy is imported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _list_for_tuple(cls, value: Any, info: ValidationInfo) -> Any:
        """`value`, a list made a tuple where the field is one: YAML has only lists, frozen records none."""
        if isinstance(value, list) and info.field_name is not None:
            kinds = (annotation := cls.model_fields[info.field_name].annotation, *get_args(annotation))
            if any(get_origin(kind) is tuple for kind in kinds):
                return tuple(value)
        return value

    def reads(self) -> list[Path]:
        """The files whose content decides what the component does: a run depends on it, and not on their names."""
        return []
