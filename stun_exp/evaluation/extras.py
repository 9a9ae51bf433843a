"""What some tasks of lm-eval need besides their data: packages, the metric that runs code, a tokenizer of sentences."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

from stun_exp.data.hub import why_unreachable
from stun_exp.data.missing import Missing
from stun_exp.evaluation.tasks import Definition

EXTRAS = dict.fromkeys(("immutabledict", "langdetect", "nltk"), "ifeval")
"""Packages that stun_exp installs on demand, and with which of its extras."""
CODE_METRIC = "evaluate-metric/code_eval"
PUNKT = "punkt_tab"
_CONSENT = "HF_ALLOW_CODE_EVAL"


def runs_code(definition: Definition) -> bool:
    """Whether the task runs what the model writes."""
    return bool(definition.get("unsafe_code"))


@contextmanager
def code_allowed(allowed: bool) -> Iterator[None]:
    """In the block, the metric that runs code does so, if that is `allowed`."""
    before = os.environ.get(_CONSENT)
    if allowed:
        os.environ[_CONSENT] = "1"
    try:
        yield
    finally:
        if allowed and before is None:
            del os.environ[_CONSENT]
        elif allowed and before is not None:
            os.environ[_CONSENT] = before


def import_code(files: Iterable[Path]) -> None:
    """Imports the functions that tasks' files name; ValueError that says how to install what they lack."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for file in files:
        try:
            load_yaml(file, resolve_func=True)
        except (ModuleNotFoundError, AssertionError) as error:
            raise ValueError(_lacking(error)) from error


def _lacking(error: ModuleNotFoundError | AssertionError) -> str:
    if "antlr4" in str(error):
        return (
            "it needs math_verify and antlr4-python3-runtime 4.11, and Hydra, which reads the settings of stun, needs "
            "4.9: one environment cannot have both"
        )
    name = str(getattr(error, "name", None) or error)
    extra = EXTRAS.get(name)
    return f"it needs the package {name}; pip install " + (f"'stun-exp[{extra}]'" if extra else name)


def missing_of(definitions: Iterable[Definition]) -> Iterator[Missing]:
    """What else tasks read and this machine has not; their code is imported."""
    named = str([sorted(map(str, one.items())) for one in definitions])
    if "unsafe_code" in named and code_metric() is None and why_unreachable():
        yield Missing(f"{CODE_METRIC} (the metric that runs code)", "eval", (str(metrics_folder()),))
    if "nltk" in sys.modules and "ifeval" in named and not has_punkt():
        import nltk

        yield Missing(f"nltk {PUNKT}", "eval", tuple(nltk.data.path[:1]))


def metrics_folder(home: Path | None = None) -> Path:
    """Where the evaluate library keeps metrics that are code; `home` stands for HF_HOME."""
    from huggingface_hub import constants

    modules = None if home else os.environ.get("HF_MODULES_CACHE")
    root = Path(modules) if modules else Path(home or constants.HF_HOME) / "modules"
    return root / "evaluate_modules" / "metrics"


def code_metric() -> Path | None:
    """The folder of the metric that runs code; None if it is not on this machine."""
    beside = Path("code_eval")  # where the evaluate library looks first
    if (beside / "code_eval.py").is_file():
        return beside
    kept = metrics_folder() / CODE_METRIC.replace("/", "--")
    return kept if any(kept.glob("*/code_eval.py")) else None


def has_punkt() -> bool:
    """Whether nltk's splitter of sentences is on this machine."""
    import nltk

    try:
        nltk.data.find(f"tokenizers/{PUNKT}")
    except LookupError:
        return False
    return True


def fetch_extras(definitions: Iterable[Definition], home: Path | None) -> Iterator[str]:
    """Fetches what tasks read besides their data, into a folder that stands for HF_HOME if one is given."""
    named = str([sorted(map(str, one.items())) for one in definitions])
    if "unsafe_code" in named:
        yield f"{CODE_METRIC}: {_fetch_code_metric(home)}"
    if "ifeval" in named:
        import nltk

        folder = None if home is None else str(home / "nltk_data")
        if not nltk.download(PUNKT, download_dir=folder, quiet=True):
            raise ValueError(f"nltk {PUNKT}: cannot be fetched; run the command again")
        yield f"nltk {PUNKT}: fetched" + ("" if folder is None else f" to {folder}; set NLTK_DATA to that too")


def _fetch_code_metric(home: Path | None) -> str:
    import evaluate

    evaluate.load("code_eval")  # which leaves it among its modules
    kept = metrics_folder() / CODE_METRIC.replace("/", "--")
    if home is not None:
        copytree(kept, metrics_folder(home) / kept.name, dirs_exist_ok=True)
    return "fetched"
