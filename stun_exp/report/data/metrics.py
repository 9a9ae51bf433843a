"""Which metric a benchmark goes by, and how it is shown."""

from collections.abc import Sequence

from stun_exp.evaluation.records import BUNDLED_TASKS
from stun_exp.report.data.run_settings import RunReport

OPTIONS = {
    **dict.fromkeys(("arc_challenge", "arc_easy", "hellaswag", "mmlu", "openbookqa"), 4),
    **dict.fromkeys(("boolq", "rte", "piqa", "winogrande"), 2),
    **dict.fromkeys(("toy_arc", "toy_hellaswag", "toy_mmlu"), 4),
}
"""Answers that an item of lm-eval's own or of a bundled multiple-choice task offers; a few items of ARC have 3 or 5.

Not in conf/benchmark: a report of an older version would not have it, and the setting would move the fingerprint of
every evaluation, though it changes none.
"""
ACCURACIES = ("acc", "acc_norm")
"""Metrics of multiple choice."""


def headlines(reports: Sequence[RunReport]) -> dict[str, str]:
    """Key of each benchmark's headline metric -> the benchmark, over all runs."""
    keys: dict[str, str] = {}
    for report in reports:
        for benchmark in report["settings"]["eval"].get("benchmarks", {}).values():
            keys.setdefault(f"{benchmark['task']}/{benchmark['metric']}", benchmark["task"])
    return keys


def scale_and_digits(key: str) -> tuple[float, int]:
    """How a metric is shown: accuracies in percent, perplexities as they are."""
    return (1.0, 3) if lower_is_better(key) else (100.0, 1)


def lower_is_better(key: str) -> bool:
    return "perplexity" in key or "bits" in key


def chance(report: RunReport, key: str) -> float | None:
    """The accuracy of guessing, 0 to 1; None where no answers are offered, and for tasks from a user's own folder."""
    task, _, metric = key.partition("/")
    benchmarks = report["settings"]["eval"].get("benchmarks", {}).values()
    is_ours = all(one.get("include") in (None, BUNDLED_TASKS) for one in benchmarks if one["task"] == task)
    if metric.partition(",")[0] not in ACCURACIES or task not in OPTIONS or not is_ours:
        return None
    return 1 / OPTIONS[task]
