"""Which metric a benchmark goes by, and how it is shown."""

from collections.abc import Sequence

from stun_exp.report.data.run_settings import RunReport


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
