"""The chance level of benchmarks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stun_exp import toy
from stun_exp.config.conf import CONF
from stun_exp.report.data.metrics import OPTIONS, chance

Make = Callable[..., dict[str, Any]]
TASKS = Path(toy.__file__).parent / "tasks"


@pytest.fixture
def report(make_report: Make) -> dict[str, Any]:
    return make_report()


def test_chance_is_one_of_the_answers_of_an_item(report: dict[str, Any]) -> None:
    assert chance(report, "arc_challenge/acc_norm,none") == 0.25
    assert chance(report, "boolq/acc,none") == 0.5


@pytest.mark.parametrize(
    "key", ["toy_gsm8k/exact_match,strict-match", "wikitext/word_perplexity,none", "toy_text/byte_perplexity,none"]
)
def test_what_offers_no_answers_has_no_chance_level(report: dict[str, Any], key: str) -> None:
    assert chance(report, key) is None


def test_a_task_of_a_user_s_own_has_no_known_chance_level(report: dict[str, Any]) -> None:
    """Its name says nothing: a folder may hold an `mmlu` with ten answers. A null folder is lm-eval's own."""
    benchmark = {"task": "mmlu", "metric": "acc,none", "num_fewshot": 0}
    report["settings"]["eval"]["benchmarks"] = {"m": benchmark | {"include": "my/tasks"}}
    assert chance(report, "mmlu/acc,none") is None
    report["settings"]["eval"]["benchmarks"] = {"m": benchmark | {"include": None}}
    assert chance(report, "mmlu/acc,none") == 0.25


def test_every_multiple_choice_benchmark_has_its_number_of_answers() -> None:
    """A new one in conf/benchmark with an accuracy as its headline needs a number."""
    benchmarks = [yaml.safe_load(file.read_text()) for file in (CONF / "benchmark").glob("*.yaml")]
    assert {one["task"] for one in benchmarks if one["metric"].startswith("acc")} == set(OPTIONS)


def test_numbers_of_answers_are_those_of_the_toy_s_items() -> None:
    for task in [task for task in OPTIONS if task.startswith("toy_")]:
        files = list((TASKS / "data").glob(f"{task.removeprefix('toy_')}*.jsonl"))
        items = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert items
        assert {len(item.get("choices") or item["endings"]) for item in items} == {OPTIONS[task]}, task
