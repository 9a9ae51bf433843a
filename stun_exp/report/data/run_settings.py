"""The settings of runs: which tell them apart, and what to call these."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stun_exp.config.settings import WITHOUT_EFFECT

RunReport = Mapping[str, Any]
NOT_OF_A_POINT = (*WITHOUT_EFFECT, "name", "seed", "save", "export", "inference", "eval")
"""Settings that tell no points apart: they move no figure, or have a place of their own, or may not differ at all."""
IN_OTHER_COLUMNS = ("sparsity", "expert_pruner.ratio")
"""Settings that a table shows by what they led to."""


def identity(report: RunReport) -> str:
    """What runs of one point have in common: the name, and every setting that could move a figure."""
    return json.dumps([report["name"], sorted(flat_settings(report).items())])


def shown_settings(reports: Sequence[RunReport]) -> dict[str, str]:
    """Settings that tell runs of one name apart -> what to call them: without a column their rows would look alike.

    The choice of a group (`calibration: c4`) stands for all settings that it brings.
    """
    by_name: dict[str, list[dict[str, str]]] = {}
    for report in reports:
        by_name.setdefault(report["name"], []).append(flat_settings(report))

    def told_by(key: str, keys: Sequence[str]) -> bool:
        """Whether `key` has one value wherever `keys` have the same, among runs of one name."""
        for runs in by_name.values():
            values = {(tuple(run.get(k) for k in keys), run.get(key)) for run in runs}
            if len(values) > len({by for by, _ in values}):
                return False
        return True

    known = list(dict.fromkeys(key for runs in by_name.values() for run in runs for key in run))
    varying = [key for key in known if key not in IN_OTHER_COLUMNS and not told_by(key, [])]
    groups = sorted((key for key in varying if any(k.startswith(f"{key}.") for k in known)), key=varying.index)
    shown: list[str] = ["method"] if "method" in varying else []
    shown += [group for group in groups if not told_by(group, shown)]
    for key in varying:
        group = key.partition(".")[0]
        bringing = [choice for choice in shown if choice in ("method", group)]
        by_choice = key.endswith("._target_") and bringing
        if key not in (*groups, "method") and not by_choice and not (bringing and told_by(key, bringing)):
            shown.append(key)
    ends = [key.rpartition(".")[2] for key in shown]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(shown, ends, strict=True)}


def flat_settings(report: RunReport) -> dict[str, str]:
    """Every setting that tells points apart, by dotted name, and Hydra's choices of the groups among them, as text.

    A component's own seed is none where it follows the run's.
    """
    settings = {key: value for key, value in report["settings"].items() if key not in NOT_OF_A_POINT}
    choices = report.get("choices", {}).items()
    chosen = {key: value for key, value in choices if key in (*settings, "method") and value is not None}
    values = {key: value for key, value in leaves(settings).items() if not _follows_seed(key, value, report)}
    return {key: _text(value) for key, value in (*chosen.items(), *values.items())}


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Every value in nested settings, by its dotted name below `path`."""
    if not isinstance(node, dict):
        return {path: node}
    inside = ((f"{path}.{key}" if path else str(key), value) for key, value in node.items())
    return {name: leaf for inner, value in inside for name, leaf in leaves(value, inner).items()}


def _follows_seed(key: str, value: Any, report: RunReport) -> bool:
    return key.endswith(".seed") and value == report["seed"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
