"""The published figures, and which of our runs each is about.

published.csv has them with their source. `status` is `primary` where the paper or its code was read, `unverified` where
somebody's note of it was, `contradictory` where two such notes cannot both be right, so that no verdict may rest on the
figure. What follows `source` says which of our runs a row is about: the pack, the model's card, the method, further
settings, our metrics (a row is about their mean), and shots where they are stated. Where that is left empty, `remark`
says why; elsewhere it says what is not known, or how the notes contradict each other.
"""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from stun_exp.report.data.points import Point
from stun_exp.report.data.run_settings import flat_settings

_BUNDLED = "bundled:"
FILE = Path(__file__).with_name("published.csv")
TOY_NAMES = {
    "c4": "toy",
    "math": "toy_maths",
    "gsm8k": "toy_gsm8k",
    "arc_challenge": "toy_arc",
    "hellaswag": "toy_hellaswag",
    "mmlu": "toy_mmlu",
}
"""Calibration texts and benchmarks, and what stands for them in the toy version of a pack."""
CONTRADICTORY = "contradictory"
SPARSITY_TOLERANCE = 0.005
"""How far our sparsity may be from the published one, which is printed in whole percents."""
PublishedRow = Mapping[str, str]


@cache
def published_rows() -> list[PublishedRow]:
    """Every published figure, as published.csv has it."""
    with FILE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_of_method(row: PublishedRow, point: Point) -> bool:
    """Whether the run is of the row's method, or unpruned as the row is."""
    if row["our_method"] == "unpruned":
        return point.is_unpruned
    return not point.is_unpruned and bool(row["our_method"]) and row["our_method"] == _choice(point, "method")


def is_of_model(row: PublishedRow, point: Point) -> bool:
    """Whether the run is of the published model, by its card."""
    return bool(row["model_card"]) and row["model_card"] == _choice(point, "model")


def is_of_toy_version(row: PublishedRow, point: Point) -> bool:
    """Whether the run is of the pack's toy version, on a bundled model."""
    return is_of_pack(row, point) and str(point.reports[0]["model"]["source"]).startswith(_BUNDLED)


def is_of_pack(row: PublishedRow, point: Point) -> bool:
    """Whether the run is of the pack that reproduces the row, or of its toy version."""
    return bool(row["pack"]) and row["pack"] == _choice(point, "experiment").rpartition("/")[2]


def has_settings(row: PublishedRow, point: Point) -> bool:
    """Whether the run has the row's sparsity and settings; a toy version has sizes of its own, for a small model."""
    if point.is_unpruned:
        return True
    requested = {
        "recovery": "none",
        "skipping": "none",
        **dict(text.split("=") for text in row["our_settings"].split()),
    }
    ours = flat_settings(point.reports[0])
    of_toy = not is_of_model(row, point)
    for key, value in requested.items():
        is_toys = of_toy and (key.startswith("calibration.") or ours.get(key) == TOY_NAMES.get(value))
        if ours.get(key) != value and not is_toys:
            return False
    return abs(point.sparsity - float(row["sparsity"])) <= SPARSITY_TOLERANCE


def our_metric_keys(row: PublishedRow, point: Point) -> list[str]:
    """Our metrics; those of the toy version's benchmarks where the model is another."""
    keys = row["our_metrics"].split()
    if is_of_model(row, point):
        return keys
    parts = [key.partition("/") for key in keys]
    return [f"{TOY_NAMES.get(task, task)}/{metric}" for task, _, metric in parts]


def _choice(point: Point, group: str) -> str:
    return str(point.reports[0].get("choices", {}).get(group) or "")
