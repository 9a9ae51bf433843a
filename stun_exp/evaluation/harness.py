"""lm-evaluation-harness as this project calls it: its tasks loaded, run, and what they gave as plain records."""

import json
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from stun_exp.evaluation.records import BUNDLED_TASKS, Benchmark, EvalResult, Metric, Sample
from stun_exp.toy import TASKS


@dataclass(frozen=True)
class Loaded:
    """A benchmark's tasks with their data, and the manager that found them."""

    manager: Any
    tasks: dict[str, Any]
    groups: dict[str, Any]

    def named(self, name: str) -> Any:
        return self.groups.get(name) or self.tasks[name]

    def digests(self) -> dict[str, str]:
        """Of all that the figures depend on besides the settings, by task."""
        return {name: digest(task) for name, task in self.tasks.items()}

    def rehearse(self, benchmark: Benchmark, tokenizer: Any) -> None:
        rehearse(benchmark, self)

    def measure(self, benchmark: Benchmark, lm: Any, limit: int | None) -> EvalResult:
        return measure(benchmark, self, lm, limit)


def load(benchmark: Benchmark) -> Loaded:
    from lm_eval.tasks import TaskManager

    # lm-eval warns of defaults that tasks rely on; hub clients tell every retry of what is told below.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    folder = str(TASKS) if benchmark.include == BUNDLED_TASKS else benchmark.include
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if benchmark.task not in manager.all_tasks:
        where = benchmark.include or "lm-eval"
        raise ValueError(f"eval.benchmarks: {where} has no task {benchmark.task!r}")
    try:
        found = manager.load([benchmark.task])
    except Exception as error:  # any of a dozen classes of as many libraries
        if benchmark.include is None or _lacks_data(error):
            raise FileNotFoundError(
                f"benchmark {benchmark.task}: its data is neither cached nor reachable ({_said(error)}); fetch it on a "
                f"machine with a network by `lm-eval run --model dummy --tasks {benchmark.task} --limit 1` and take "
                "its HF_HOME along, or leave it out with eval=none or eval=toy"
            ) from error
        raise ValueError(
            f"benchmark {benchmark.task}: the task cannot be set up ({_said(error)}); look at its YAML file in "
            f"{benchmark.include}"
        ) from error
    return Loaded(manager, found["tasks"], found["groups"])


def _lacks_data(error: BaseException | None) -> bool:
    """Whether an error of an own task comes of data that is not to be had, and not of a mistake in the task."""
    while error is not None:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        raised_in = str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] if frames else ""
        if isinstance(error, LookupError | TypeError | AttributeError):
            return False  # a name that the data does not have
        if isinstance(error, OSError) or raised_in in {"datasets", "huggingface_hub", "httpx", "httpcore", "fsspec"}:
            return True
        error = error.__cause__ or error.__context__
    return False


def rehearse(benchmark: Benchmark, loaded: Loaded) -> None:
    """ValueError if the benchmark could not be measured as it is set: another metric, too many shots, a broken task.

    One item of each task goes through lm-eval, with a stand-in for the model: what would fail after hours fails now.
    """
    from lm_eval.models.dummy import DummyLM

    try:
        measure(benchmark, loaded, quiet(DummyLM, always=True)(), limit=1)
    except ValueError as error:
        if str(error).startswith("eval.benchmarks."):
            raise
        raise _unmeasurable(benchmark, error) from error
    except Exception as error:  # a task's own code
        raise _unmeasurable(benchmark, error) from error


def _unmeasurable(benchmark: Benchmark, error: Exception) -> ValueError:
    return ValueError(
        f"eval.benchmarks.{benchmark.task}: lm-eval fails on its first item with num_fewshot={benchmark.num_fewshot} "
        f"({_said(error)}); lower the shots, or look at the task's YAML file and functions"
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def measure(benchmark: Benchmark, loaded: Loaded, lm: Any, limit: int | None) -> EvalResult:
    from lm_eval import evaluator

    # What it notes of the machine: it asks pip and git for seconds, complains outside a repository, and asks the hub
    # for the stand-in's tokenizer. A run's report has a provenance of its own.
    evaluator.get_git_commit_hash = lambda: None
    evaluator.add_env_info = evaluator.add_tokenizer_info = lambda *_: None
    own_shots = {task.config.num_fewshot or 0 for task in loaded.tasks.values()}
    results = evaluator.simple_evaluate(
        model=lm,
        tasks=[loaded.named(benchmark.task)],
        # Not the manager that lm-eval would make: it indexes every task there is, for seconds.
        task_manager=loaded.manager,
        # Overriding a number by itself is a warning there.
        num_fewshot=None if own_shots == {benchmark.num_fewshot} else benchmark.num_fewshot,
        limit=limit,
        # Means have a closed form; the rest (perplexities) is resampled, and 100,000 times takes longer than the task.
        bootstrap_iters=1000,
        log_samples=True,
    )
    assert results is not None
    metrics = {}
    leaves = {name: count["effective"] for name, count in results["n-samples"].items()}
    wrong = {name: shots for name, shots in results["n-shot"].items() if name in leaves}
    if set(wrong.values()) - {benchmark.num_fewshot}:
        raise ValueError(
            f"eval.benchmarks.{benchmark.task}.num_fewshot={benchmark.num_fewshot}: lm-eval used {wrong}; "
            "the task pins its own number"
        )
    for name, figures in {**results["results"], **results.get("groups", {})}.items():
        count = leaves.get(name) or sum(leaves[leaf] for leaf in _leaves(results["group_subtasks"], name))
        task_version = str(results["versions"].get(name, "unknown"))
        for key, value in figures.items():
            metric, comma, filter_ = str(key).partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = figures.get(f"{metric}_stderr,{filter_}")
            stderr = float(stderr) if isinstance(stderr, int | float) else None
            metrics[f"{name}/{key}"] = Metric(float(value), stderr, count, benchmark.num_fewshot, task_version)
    if f"{benchmark.task}/{benchmark.metric}" not in metrics:
        known = [key.partition("/")[2] for key in metrics if key.startswith(f"{benchmark.task}/")]
        raise ValueError(f"eval.benchmarks.{benchmark.task}.metric={benchmark.metric}: the task has {', '.join(known)}")
    return EvalResult(
        metrics, [s for task, items in results["samples"].items() for s in _samples(benchmark.task, task, items)]
    )


def _samples(benchmark: str, task: str, items: list[dict[str, Any]]) -> Iterator[Sample]:
    """The items of a task under each metric that gives a number for each item, or its likelihood and its length."""
    for item in items:
        shown = sha256("".join(item[f"{what}_hash"] for what in ("doc", "prompt", "target")).encode()).hexdigest()[:16]
        for metric in item["metrics"]:
            value = item[metric]
            # Perplexities are made of (log-likelihood, number of words or bytes).
            number = -value[0] if isinstance(value, tuple) else value
            if isinstance(number, int | float):
                yield Sample(benchmark, task, f"{metric},{item['filter']}", item["doc_id"], shown, float(number))


def digest(task: Any) -> str:
    """Of a task's definition and data."""
    data = {split: rows._fingerprint for split, rows in task.dataset.items()}
    return sha256(json.dumps([task.dump_config(), data], sort_keys=True, default=str).encode()).hexdigest()


def quiet(backend: Any, always: bool = False) -> Any:
    """One of lm-eval's backends, without its progress bars where there is no terminal, or `always`."""
    from stun_exp.utils.progress import console

    if console.is_terminal and not always:
        return backend

    class Quiet(backend):  # type: ignore[misc]
        # The bars can be turned off by argument alone, and lm-eval's evaluator passes none.
        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **rest: Any) -> Any:
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **rest)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    return Quiet


def _leaves(subtasks: dict[str, list[str]], name: str) -> list[str]:
    children = subtasks.get(name, [])
    return [leaf for child in children for leaf in (_leaves(subtasks, child) or [child])]
