"""One number for what runs came to, smaller for better: what a search for good settings, as Optuna's, goes by."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from stun_exp.report.data.metrics import headlines, lower_is_better
from stun_exp.report.data.run_settings import RunReport
from stun_exp.utils.json_files import read_json, with_numbers


def objective(folders: Sequence[Path]) -> float | None:
    """The mean over the runs in these folders; None if there are none, or they ran no benchmark."""
    files = [folder / "report.json" for folder in folders]
    found = [_of(with_numbers(read_json(file))) for file in files if file.is_file()]  # a dry run leaves none
    known = [value for value in found if value is not None]
    return mean(known) if known else None


def _of(report: RunReport) -> float | None:
    """The mean of 1 - accuracy over the benchmarks or, where no benchmark has one, the mean perplexity.

    The two have no common scale, so that with both the perplexities do not count.
    """
    figures = [(lower_is_better(key), report["metrics"][key]["value"]) for key in headlines([report])]
    errors = [1 - value for is_perplexity, value in figures if not is_perplexity]
    perplexities = [value for is_perplexity, value in figures if is_perplexity]
    return float(mean(errors or perplexities)) if figures else None
