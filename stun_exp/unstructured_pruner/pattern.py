"""N:M patterns, as text and as numbers."""

import re
from typing import Annotated

from pydantic import BeforeValidator


def parsed(pattern: str) -> tuple[int, int] | None:
    """(n, m) of `n:m`, the number removed of every m neighbors; None for `unstructured`; ValueError for all else."""
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"([0-9]+):([0-9]+)", pattern)
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise ValueError("must be unstructured, or n:m with 0 < n < m such as 2:4")
    return int(match[1]), int(match[2])


def fixed_ratio(pattern: str) -> float | None:
    """The share of each matrix that an n:m pattern takes; None where any share can be asked."""
    n_of_m = parsed(pattern)
    return n_of_m[0] / n_of_m[1] if n_of_m else None


def check_width(pattern: str, num_inputs: int, matrix: str) -> None:
    """ValueError if the pattern's neighbors do not divide the inputs of a matrix, which is named."""
    n_of_m = parsed(pattern)
    if n_of_m and num_inputs % n_of_m[1]:
        raise ValueError(
            f"unstructured_pruner.pattern={pattern}: {n_of_m[1]} neighbors do not divide the {num_inputs} inputs of "
            f"{matrix}; choose one that does, or pattern=unstructured"
        )


def _checked(pattern: object) -> object:
    if isinstance(pattern, int):
        raise ValueError("must be text; YAML reads n:m as minutes and seconds unless it is in quotes")
    if isinstance(pattern, str):
        parsed(pattern)
    return pattern


Pattern = Annotated[str, BeforeValidator(_checked)]
"""The text of a pattern: `unstructured`, or n:m."""
