"""lm-eval's tasks as their files define them: found without reading every one of them, and before their code is run."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stun_exp.data.sets import DataSet
from stun_exp.evaluation.records import BUNDLED_TASKS, Benchmark
from stun_exp.toy import TASKS

Definition = Mapping[str, Any]
"""What a task's file says, with what that includes; functions by their names."""


def manager_of(benchmark: Benchmark) -> Any:
    """The manager that knows the benchmark's task, and the tasks that this is a group of."""
    from lm_eval.tasks import TaskManager

    if benchmark.include is None:
        return _shipped(benchmark.task)
    folder = str(TASKS) if benchmark.include == BUNDLED_TASKS else benchmark.include
    return TaskManager(include_path=folder, include_defaults=False)


def definitions(manager: Any, name: str) -> Iterator[Definition]:
    """The definitions of a task, or of all that a group consists of; none of its code is run."""
    for child, changes in _leaves(manager, name, {}):
        entry = manager.task_index.get(child)
        yield {**(entry.cfg if entry else {}), **changes}


def data_set_of(definition: Definition) -> DataSet | None:
    """The data set of the hub that a task reads; None if it has files of its own, or code that makes its items."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    path = definition.get("dataset_path")
    if not isinstance(path, str) or path in _PACKAGED_DATASETS_MODULES or Path(path).exists():
        return None
    return DataSet(path, definition.get("dataset_name"))


def _leaves(
    manager: Any, name: str, changes: Definition, walked: set[str] | None = None
) -> Iterator[tuple[str, Definition]]:
    """(Name, what groups around it change) of each task; of one that the manager does not know that is all.

    `walked` gets the names of all that was gone through.
    """
    walked = set() if walked is None else walked
    walked.add(name)
    entry = manager.task_index.get(name)
    members = changes.get("members") if entry is None else _members(entry)
    if members is None:
        yield name, {key: value for key, value in changes.items() if key != "members"}
        return
    for member in members:
        if isinstance(member, str):
            yield from _leaves(manager, member, changes, walked)
        elif "group" in member:
            inner = {**changes, **member, "members": member.get("task")}
            yield from _leaves(manager, member["group"], inner, walked)
        else:
            yield from _leaves(manager, member["task"], {**changes, **member}, walked)


def _members(entry: Any) -> list[Any] | None:
    """What a group or a tag consists of; None for a task."""
    if entry.cfg is None:  # a tag, which is in no file of its own
        return sorted(entry.tags)
    return entry.cfg["task"] if isinstance(entry.cfg.get("task"), list) else None


@cache
def _shipped(task: str) -> Any:
    """lm-eval's manager of the folders that one of its tasks is made of: all of its 14,000 files take half a minute."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    folders, names, manager = set[Path](), {task}, None
    while True:
        found = {name: {root / file.relative_to(root).parts[0] for file in _defining(root, name)} for name in names}
        if manager is not None and set().union(*found.values()) <= folders:
            break
        folders = folders.union(*found.values())
        # Of tasks of one name lm-eval takes the first, but of its folders the last.
        paths = sorted(map(str, folders), reverse=True)
        manager = lm_eval.tasks.TaskManager(include_path=paths, include_defaults=False)
        for _ in _leaves(manager, task, {}, names):
            pass
    # Of a tag it keeps the members in one folder alone.
    tags = [name for name in names & manager.task_index.keys() if manager.task_index[name].cfg is None]
    scattered = any(len(found[tag]) > 1 for tag in tags)
    return lm_eval.tasks.TaskManager() if scattered or names - manager.task_index.keys() else manager


def _defining(root: Path, name: str) -> Iterator[Path]:
    """The files of a task, a group, or of each task under a tag."""
    own = re.escape(name)
    line = re.compile(rf"^(?:task|group|tag): *['\"]?{own}['\"]?\s*$|^tag:\s*\n(?: *- .*\n)*? *- ['\"]?{own}\b", re.M)
    yield from (file for file, text in _texts(root).items() if name in text and line.search(text))


@cache
def _texts(root: Path) -> dict[Path, str]:
    return {file: file.read_text(errors="replace") for file in sorted(root.glob("**/*.yaml"))}
