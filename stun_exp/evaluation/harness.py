"""lm-evaluation-harness as this project calls it: its tasks loaded, run, and what they gave as plain records."""

import json
import logging
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from stun_exp.evaluation.extras import code_allowed, import_code, runs_code
from stun_exp.evaluation.records import Benchmark, EvalResult, Metric, Sample
from stun_exp.evaluation.source import Source
from stun_exp.evaluation.tasks import Definition, definitions, manager_of


@dataclass(frozen=True)
class Loaded:
    """A benchmark's tasks with their data, and the manager that found them."""

    manager: Any
    tasks: dict[str, Any]
    groups: dict[str, Any]
    run_unsafe_code: bool = False

    def named(self, name: str) -> Any:
        return self.groups.get(name) or self.tasks[name]

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the definition and the data of each task."""
        return {name: digest(task) for name, task in self.tasks.items()}

    def rehearse(self, benchmark: Benchmark, tokenizer: Any) -> None:
        """ValueError if the benchmark could not be measured as it is set."""
        rehearse(benchmark, self)

    def measure(self, benchmark: Benchmark, lm: Any, limit: int | None) -> EvalResult:
        """What lm-eval says of a model."""
        return measure(benchmark, self, lm, limit)


def load(benchmarks: Sequence[Benchmark], data: Path | None, run_unsafe_code: bool) -> list[Loaded]:
    """The benchmarks' tasks with their data, from a folder of data sets or from where the hub's clients keep them.

    Raises:
        MissingData: Everything that is neither on this machine nor to be had.
        ValueError: There is no such task, its code cannot be run, or its data is not what it reads.
    """
    _silence()
    managers = {benchmark: manager_of(benchmark) for benchmark in benchmarks}
    tasks = {benchmark: _defined(benchmark, manager) for benchmark, manager in managers.items()}
    refused = [line for one in benchmarks if (line := _refusal(one, managers[one], tasks[one], run_unsafe_code))]
    if refused:
        raise ValueError("\n       ".join(refused))
    with code_allowed(run_unsafe_code):
        source = Source(data, tasks)
        return [Loaded(managers[one], *_built(one, managers[one], source), run_unsafe_code) for one in benchmarks]


def defined(benchmarks: Sequence[Benchmark]) -> list[Definition]:
    """What the tasks of benchmarks, and those that these are groups of, say of themselves."""
    _silence()
    return [one for benchmark in benchmarks for one in _defined(benchmark, manager_of(benchmark))]


def _silence() -> None:
    # lm-eval warns of defaults that tasks rely on; hub clients tell every retry of what is told below.
    for name in ("lm_eval", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _defined(benchmark: Benchmark, manager: Any) -> list[Definition]:
    if benchmark.task not in manager.all_tasks:
        where = benchmark.include or "lm-eval"
        raise ValueError(f"eval.benchmarks: {where} has no task {benchmark.task!r}")
    return list(definitions(manager, benchmark.task))


def _refusal(benchmark: Benchmark, manager: Any, defined: list[Definition], run_unsafe_code: bool) -> str:
    """Why a task's code must not or cannot be run; "" if it can."""
    if any(map(runs_code, defined)) and not run_unsafe_code:
        return (
            f"eval.benchmarks.{benchmark.task}: runs the programs that the model writes, with all that you may do on "
            "this machine; pass eval.run_unsafe_code=true to consent, best in a container, or leave it out with "
            f"~eval.benchmarks.{benchmark.task}"
        )
    if benchmark.include is not None or any(map(runs_code, defined)):
        return ""
    entries = (manager.task_index.get(one.get("task")) for one in defined)
    try:
        import_code({entry.yaml_path for entry in entries if entry is not None})
    except ValueError as error:
        return f"eval.benchmarks.{benchmark.task}: {error}; or leave it out with ~eval.benchmarks.{benchmark.task}"
    return ""


def _built(benchmark: Benchmark, manager: Any, source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """(Tasks, groups) of a benchmark, with data from the source."""
    try:
        with source.in_place(benchmark):
            found = manager.load([benchmark.task])
    except Exception as error:  # any of a dozen classes of as many libraries
        if benchmark.include is not None and _lacks_data(error):
            raise FileNotFoundError(
                f"benchmark {benchmark.task}: its data is neither cached nor reachable ({_said(error)}); see what its "
                f"YAML file in {benchmark.include} reads, or leave it out with ~eval.benchmarks.{benchmark.task}"
            ) from error
        read = source.splits_of(benchmark)
        if isinstance(error, KeyError) and read and error.args[0] in _splits(manager, benchmark):
            raise ValueError(
                f"benchmark {benchmark.task}: its data has no split {error.args[0]!r} ({read}); add the file of that "
                "split to the folder that was read, or fetch the data set whole (stun fetch)"
            ) from error
        where = "lm-eval" if benchmark.include is None else benchmark.include
        raise ValueError(
            f"benchmark {benchmark.task}: the task cannot be set up ({_said(error)}); look at its YAML file in {where}"
        ) from error
    return found["tasks"], found["groups"]


def _splits(manager: Any, benchmark: Benchmark) -> set[Any]:
    """The splits that a benchmark's tasks name."""
    names = ("training_split", "validation_split", "test_split", "fewshot_split")
    return {one.get(name) for one in definitions(manager, benchmark.task) for name in names} - {None}


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
    with code_allowed(loaded.run_unsafe_code):
        results = evaluator.simple_evaluate(model=lm, limit=limit, **_how(benchmark, loaded))
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


def _how(benchmark: Benchmark, loaded: Loaded) -> dict[str, Any]:
    """What lm-eval is told of a benchmark."""
    own_shots = {task.config.num_fewshot or 0 for task in loaded.tasks.values()}
    return {
        "tasks": [loaded.named(benchmark.task)],
        # Not the manager that lm-eval would make: it indexes every task there is, for seconds.
        "task_manager": loaded.manager,
        # Overriding a number by itself is a warning there.
        "num_fewshot": None if own_shots == {benchmark.num_fewshot} else benchmark.num_fewshot,
        # Means have a closed form; the rest (perplexities) is resampled, and 100,000 times takes longer than the task.
        "bootstrap_iters": 1000,
        "log_samples": True,
        "confirm_run_unsafe_code": loaded.run_unsafe_code,
    }


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
    """Of a task's definition and data; the same wherever the data lies."""
    told = sha256(json.dumps(task.dump_config(), sort_keys=True, default=str).encode())
    for split, rows in sorted(task.dataset.items()):
        told.update(f"{split} {rows.features}".encode())
        for batch in rows.data.to_batches(max_chunksize=1000):
            told.update(repr(batch.to_pylist()).encode(errors="surrogatepass"))
    return told.hexdigest()


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
