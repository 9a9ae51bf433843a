"""The items behind the YAML files, read from beside this file: found wherever the package is installed.

One function per task, because lm-eval calls it with the task's metadata and nothing else.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

DATA = Path(__file__).parent / "data"
Splits = dict[str, Dataset]


def _read(stem: str) -> Dataset:
    lines = (DATA / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines()
    return Dataset.from_list([json.loads(line) for line in lines])


def gsm8k(**_metadata: object) -> Splits:
    """Held-out word problems as `test`; problems to draw examples from as `train`."""
    return {"train": _read("gsm8k_fewshot"), "test": _read("gsm8k")}


def arc(**_metadata: object) -> Splits:
    """Four-choice questions."""
    return {"test": _read("arc")}


def hellaswag(**_metadata: object) -> Splits:
    """Stories with four endings."""
    return {"test": _read("hellaswag")}


def text(**_metadata: object) -> Splits:
    """Plain documents."""
    return {"test": _read("text")}


def mmlu_biography(**_metadata: object) -> Splits:
    """Lettered questions about who people are."""
    return {"test": _read("mmlu_biography")}


def mmlu_customs(**_metadata: object) -> Splits:
    """Lettered questions about what people like."""
    return {"test": _read("mmlu_customs")}


def mmlu_geography(**_metadata: object) -> Splits:
    """Lettered questions about places."""
    return {"test": _read("mmlu_geography")}


def mmlu_inventions(**_metadata: object) -> Splits:
    """Lettered questions about things."""
    return {"test": _read("mmlu_inventions")}


def text_results(doc: dict[str, Any], results: tuple[float]) -> dict[str, tuple[float, int]]:
    """Log-likelihood of a document and its words and bytes, of which lm-eval makes perplexities."""
    (loglikelihood,) = results
    words, num_bytes = len(doc["page"].split()), len(doc["page"].encode())
    return {
        "word_perplexity": (loglikelihood, words),
        "byte_perplexity": (loglikelihood, num_bytes),
        "bits_per_byte": (loglikelihood, num_bytes),
    }
