"""A run in a child process that can be killed at any point, as by `kill -9`."""

import os
import signal
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stun_exp.pipeline import prune, run
from stun_exp.state.journal import Journal

# Every stage has something to do: experts and allocation look at data, and the weights of a layer at those before it.
STUN = ("sparsity=0.5", "expert_pruner.ratio=0.2", "expert_pruner.lambda2=0.5")


@pytest.fixture
def go(
    runner: Callable[..., dict[str, Any]], tiny_model: Callable[[str], Path], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Runs, or goes on with, the run of these tests in tmp_path/out, and returns its report."""
    tiny_model("mixtral")  # in this process: each child would make one of its own
    return partial(runner, "save=true", *STUN, out=tmp_path / "out")


@pytest.fixture
def in_child() -> Callable[..., Callable[[], int]]:
    """Starts a function in a child process, a copy of this one that calls `prepare` first; returns what waits for it.

    The wait returns the signal that ended the child, 0 if none did; the child must not fail otherwise.
    """

    def start(function: Callable[[], Any], prepare: Callable[[], None] = lambda: None) -> Callable[[], int]:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                prepare()
                function()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

        def wait() -> int:
            _, status = os.waitpid(child, 0)
            assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
            return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

        wait.pid = child  # type: ignore[attr-defined]
        return wait

    return start


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(owner: Any, name: str, number: int, when: Callable[..., bool] = lambda *args: True) -> None:
    """Makes this process die when `owner.name` is called for the `number`-th time (with such arguments)."""
    original, calls = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            calls.append(1)
            if len(calls) == number:
                die()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


@pytest.fixture
def die_before() -> Callable[..., Callable[[], None]]:
    """(owner, name, number) -> what makes a process die when it calls that function for the number-th time."""
    return lambda *args: partial(before_call, *args)


@pytest.fixture
def interrupted(go: Callable[..., dict[str, Any]], in_child: Callable[..., Callable[[], int]], tmp_path: Path) -> Path:
    """tmp_path/out, in which that run was killed when two of its three layers were recorded."""
    die_at = partial(before_call, Journal, "add", 5)  # after the experts, the allocation and two layers
    assert in_child(go, die_at)() == signal.SIGKILL
    return tmp_path / "out"


@pytest.fixture
def undisturbed(go: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    """The checkpoint of the same run, never interrupted."""
    go(out=tmp_path / "whole")
    return tmp_path / "whole/checkpoint"


@pytest.fixture
def prunings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that are pruned in this process from now on."""
    layers: list[int] = []
    original = prune.prune_layer_

    def noted(stage: Any, step: Any, ratios: Any) -> Any:
        layers.append(step.layer.index)
        return original(stage, step, ratios)

    monkeypatch.setattr(prune, "prune_layer_", noted)
    return layers


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages before the pruning that are gone through in this process from now on."""
    stages: list[str] = []

    def noted(stage: str, original: Any) -> Any:
        return lambda *args: (stages.append(stage), original(*args))[1]

    for stage, name in {"experts": "decide_experts", "allocate": "allocate"}.items():
        monkeypatch.setattr(run, name, noted(stage, getattr(run, name)))
    return stages


@pytest.fixture
def content() -> Callable[[Path], dict[str, bytes]]:
    """The bytes of every file of a folder, by name."""
    return lambda folder: {file.name: file.read_bytes() for file in folder.iterdir()}
