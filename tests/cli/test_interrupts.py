"""Ctrl-C and SIGTERM end a command with one line and the code that shells expect; what it held is let go."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# A run that says when it is at work, and whether it came to its end in order.
AT_WORK = """
import sys, time, types
from pathlib import Path
from stun_exp.state.lock import run_lock

def run(points, *_):
    with run_lock(points[0].out):
        try:
            print("at work", flush=True)
            time.sleep(60)
        finally:
            print("let go", flush=True)
            {then}
    return []

module = types.ModuleType("stun_exp.pipeline.run")
module.run = run
sys.modules["stun_exp.pipeline.run"] = module
sys.path.insert(0, {tree!r})
from stun_exp.cli.main import main
main(Path({tree!r}) / "conf")
"""
STUN = "from stun_exp.cli.entry import stun; stun()"
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@contextmanager
def started(code: str, *argv: str, here: Path) -> "Iterator[subprocess.Popen[str]]":
    """Python while it runs a code in a folder, as the head of a group of processes like those of a terminal."""
    command = [sys.executable, "-c", code, *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Started in the background, the tests themselves ignore Ctrl-C, and what they start would too.
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=here, text=True, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(found: Callable[[], bool]) -> None:
    for _ in range(3000):
        if found():
            return
        time.sleep(0.02)
    raise TimeoutError("not within a minute")


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["hydra.run.dir=mine"], "stopped; the same command goes on"),
        (["hydra.run.dir=d/${now:%H-%M}"], r"stopped; the same command goes on with hydra.run.dir=d/"),
        (["-m", "seed=0,1", "hydra.sweep.dir=mine"], "stopped; the same command goes on"),
        (
            ["-m", "seed=0,1", "hydra.sweep.dir=d/${now:%H-%M}"],
            "stopped; the same command goes on with hydra.sweep.dir=d/",
        ),
    ],
)
def test_a_command_at_work(number: int, argv: list[str], said: str, tree: Path, tmp_path: Path) -> None:
    code = AT_WORK.format(tree=str(tree), then="pass")
    with started(code, *argv, "model.path=x", here=tmp_path) as process:
        assert process.stdout is not None
        assert "at work\n" in process.stdout  # Hydra speaks before
        os.killpg(process.pid, number)
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (ENDS[signal.Signals(number)], "let go\n")
    (line,) = errors.splitlines()
    assert line == said or ("with" in said and line.startswith(said))


def test_a_second_signal_ends_it_at_once(tree: Path, tmp_path: Path) -> None:
    code = AT_WORK.format(tree=str(tree), then="time.sleep(60)")
    with started(code, "model.path=x", here=tmp_path) as process:
        assert process.stdout is not None
        for line in ("at work\n", "let go\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_failure_on_the_way_out_hides_no_stop(tree: Path, tmp_path: Path) -> None:
    """Some libraries answer an interrupt with an error of their own."""
    code = AT_WORK.format(tree=str(tree), then="raise ValueError('half done')")
    with started(code, "model.path=x", "hydra.run.dir=mine", here=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "stopped; the same command goes on\n")


@pytest.mark.parametrize("name", ["stun inspect", "stun", "stun_clusters", "stun_report"])
def test_a_command_that_loads(name: str, tmp_path: Path) -> None:
    """From its first moment on."""
    name, *argv = name.split()
    code = f"import stun_exp.cli.entry as entry; print('here', flush=True); entry.{name}()"
    with started(code, *argv, *(["."] if "_" in name else ["dry_run=true"]), here=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    if process.returncode == 130:  # it may have been quicker
        assert errors.startswith("stopped")
        assert len(errors.splitlines()) == 1
    assert "Traceback" not in errors


def test_what_a_shell_runs_in_the_background_ignores_ctrl_c(tree: Path, tmp_path: Path) -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + AT_WORK.format(tree=str(tree), then="pass")
    with started(code.replace("sleep(60)", "sleep(1)"), "model.path=x", here=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("let go\n", "")
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("at", ["multirun.yaml", "*/.hydra/overrides.yaml", "*/run.lock"])
def test_the_workers_of_a_sweep_say_nothing(at: str, tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches them too, as soon as they are there."""
    argv = ["-m", "seed=0,1", "hydra/launcher=joblib", "hydra.sweep.dir=mine", "eval=none", f"cache.path={tmp_path}/c"]
    with started(STUN, *argv, here=tmp_path) as process:
        wait_for(lambda: any(tmp_path.glob(f"mine/{at}")))
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "stopped; the same command goes on\n")
