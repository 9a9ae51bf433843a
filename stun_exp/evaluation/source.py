"""The data of benchmarks: read once for all tasks that share it, and given to lm-eval in place of a download."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stun_exp.data.missing import Missing, MissingData
from stun_exp.data.reading import NotHere, read_set
from stun_exp.data.sets import DataSet, folders_of, places
from stun_exp.evaluation.extras import missing_of
from stun_exp.evaluation.records import Benchmark
from stun_exp.evaluation.tasks import Definition, data_set_of
from stun_exp.utils.paths import expanded

Key = tuple[DataSet, str]
"""A data set, and what more its loader is told."""


class Source:
    """Every data set that benchmarks read; MissingData with all that are neither on this machine nor to be had."""

    def __init__(self, data: Path | None, defined: Mapping[Benchmark, Sequence[Definition]]):
        """`data` is a folder of data sets; `defined` has the definitions of each benchmark's tasks."""
        self._rows: dict[Benchmark, dict[Key, Any]] = {}
        self._data = data
        missing: list[Missing] = []
        shared: dict[tuple[Key, str | None], Any] = {}
        parts = _parts(defined)
        for benchmark, tasks in defined.items():
            self._rows[benchmark] = {}
            for data_set, options in _sets(tasks):
                key = (data_set, repr(options))
                where = (key, benchmark.path)
                try:
                    if where not in shared:
                        alone = benchmark.path is not None or len(parts[data_set.name]) == 1
                        shared[where] = read_set(data_set, self._folders(benchmark, data_set), alone, **options)
                except NotHere as why:
                    missing.append(Missing(str(data_set), "eval", places("eval.data", data), str(why)))
                    continue
                self._rows[benchmark][key] = shared[where]
            missing += missing_of(tasks)
        if missing:
            raise MissingData(missing)

    def _folders(self, benchmark: Benchmark, data_set: DataSet) -> list[Path]:
        return [expanded(benchmark.path)] if benchmark.path else list(folders_of(data_set.name, self._data))

    @contextmanager
    def in_place(self, benchmark: Benchmark) -> Iterator[None]:
        """In the block, what a benchmark's tasks ask the datasets library for is what has been read."""
        import datasets

        original = datasets.load_dataset

        def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
            read = self._rows[benchmark].get((DataSet(path, name), repr(options)))
            return original(path, name, **options) if read is None else read

        datasets.load_dataset = load_dataset
        try:
            yield
        finally:
            datasets.load_dataset = original

    def splits_of(self, benchmark: Benchmark) -> str:
        """The splits that were read of each data set of a benchmark, in words."""
        read = {f"{data_set} has {', '.join(rows)}" for (data_set, _), rows in self._rows[benchmark].items()}
        return "; ".join(sorted(read))


def _sets(tasks: Sequence[Definition]) -> Iterator[tuple[DataSet, dict[str, Any]]]:
    """(Data set, what more its loader is told) of each task that reads one of the hub."""
    for task in tasks:
        data_set = data_set_of(task)
        if data_set is not None:
            options = dict(task.get("dataset_kwargs") or {})
            options.pop("trust_remote_code", None)  # which the library has no longer
            yield data_set, options


def _parts(defined: Mapping[Benchmark, Sequence[Definition]]) -> dict[str, set[str | None]]:
    """The parts of each data set that benchmarks read."""
    parts: dict[str, set[str | None]] = {}
    for tasks in defined.values():
        for data_set, _ in _sets(tasks):
            parts.setdefault(data_set.name, set()).add(data_set.config)
    return parts
