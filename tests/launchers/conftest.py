"""Sweeps of the bundled model through each launcher, and a Slurm of the tests' own on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from csv import DictReader
from dataclasses import dataclass, field
from getpass import getuser
from importlib.util import find_spec
from pathlib import Path
from secrets import token_bytes
from typing import TypeVar

import pytest

NODE = "this"
DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = f"{os.environ['PATH']}:/usr/sbin"  # where Debian puts daemons, and not every user looks
MEASURED = ("selection (s)", "peak GiB", "total (s)")
"""The columns of a table that differ from run to run."""
T = TypeVar("T")


def wait_for(find: Callable[[], T]) -> T:
    """What `find` gives once that is something."""
    for _ in range(15000):
        if found := find():
            return found
        time.sleep(0.02)
    raise TimeoutError("not within five minutes")


@dataclass(frozen=True)
class Sweep:
    """The command of a sweep into one folder, which can be given again and again."""

    folder: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]

    @contextmanager
    def started(self) -> Iterator["subprocess.Popen[bytes]"]:
        """The command while it runs; what it has started ends with the block."""
        stun = Path(sys.executable).with_name("stun")
        own = (f"hydra.sweep.dir={self.folder}", f"cache.path={self.folder}/cache")
        with self.log.open("w") as log:
            command = [str(stun), "-m", *own, *self.arguments]
            process = subprocess.Popen(
                command, env=os.environ | self.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run(self) -> int:
        """The command's exit code."""
        with self.started() as process:
            return process.wait(timeout=300)

    @property
    def log(self) -> Path:
        """All that the command said when it was last given."""
        return self.folder.with_suffix(".log")

    def kill_a_worker(self) -> Path:
        """Kills a point's process between the choice of experts and the report; the point's folder."""
        point = wait_for(lambda: next((plan.parent for plan in self.folder.glob("*/plan.json")), None))
        os.kill(json.loads((point / "run.lock").read_text())["pid"], signal.SIGKILL)
        assert not (point / "report.json").exists(), "the point was over before its process was killed"
        return point

    def table(self) -> list[dict[str, str]]:
        """The rows of the table at the sweep's end, without what the clock measured."""
        (table,) = self.folder.glob("report/tables/*.csv")
        with table.open() as file:
            return [{name: cell for name, cell in row.items() if name not in MEASURED} for row in DictReader(file)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[..., Sweep]:
    """Makes a sweep into a folder of its own, through a launcher whose engine is started for it, one thread a point."""

    def make(launcher: str, *arguments: str) -> Sweep:
        engine = request.getfixturevalue(launcher) if launcher in ("slurm", "ray") else Engine()
        return Sweep(
            tmp_path_factory.mktemp(launcher) / "sweep",
            (f"hydra/launcher={launcher}", *engine.settings, *arguments),
            {"OMP_NUM_THREADS": "1", **engine.environment},
        )

    return make


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a launcher needs to reach the engine behind it."""

    settings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def ray() -> Iterator[Engine]:
    """A Ray that keeps its files to itself; the launcher starts and ends it."""
    if find_spec("ray") is None:
        pytest.skip("no ray: pip install -e '.[ray]'")
    folder = tempfile.mkdtemp(prefix="ray")  # not tmp_path: the names of its sockets may have 107 characters
    environment = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    yield Engine(settings=("hydra.launcher.ray.init.num_cpus=2",), environment=environment)
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Slurm(Engine):
    """A Slurm that has this machine as its one node."""

    def say(self, *command: str) -> str:
        """What one of its commands says."""
        environment = os.environ | self.environment
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout

    def has_a_node(self) -> bool:
        """Whether it is up."""
        try:
            return "idle" in self.say("sinfo", "--noheader", "--format=%t")
        except subprocess.CalledProcessError:
            return False

    def hurry(self) -> None:
        """Starts the point that is queued again next, which Slurm would let wait for two minutes."""

        def waiting() -> list[str]:
            lines = self.say("squeue", "--noheader", "--array", "--format=%i %r").splitlines()
            return [line.split()[0] for line in lines if line.endswith(" BeginTime")]

        self.say("scontrol", "update", f"JobId={wait_for(waiting)[0]}", "StartTime=now")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A real one: its controller, its node and munge run as this user, in a folder and on ports of their own."""
    if missing := [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=PATH) is None]:
        pytest.skip(f"no {', '.join(missing)}: apt-get install --no-install-recommends slurm-wlm munge")
    here = tmp_path_factory.mktemp("slurm")
    conf = here / "slurm.conf"
    conf.write_text(slurm_conf(here))
    slurm = Slurm(settings=("hydra.launcher.cpus_per_task=1",), environment={"SLURM_CONF": str(conf)})
    (here / "state").mkdir()
    (here / "key-file").write_bytes(token_bytes(128))
    (here / "key-file").chmod(0o400)
    munge = [f"--{what}={here / what}" for what in ("key-file", "socket", "pid-file", "log-file", "seed-file")]
    with ExitStack() as running:
        running.enter_context(daemon(here, "munged", "--foreground", "--force", *munge))
        wait_for((here / "socket").exists)
        running.enter_context(daemon(here, "slurmctld", "-D", "-f", str(conf)))
        running.enter_context(daemon(here, "slurmd", "-D", "-f", str(conf), "-N", NODE))
        wait_for(slurm.has_a_node)
        yield slurm
        slurm.say("scancel", f"--user={getuser()}")
        wait_for(lambda: not slurm.say("squeue", "--noheader"))


@contextmanager
def daemon(here: Path, name: str, *arguments: str) -> Iterator[None]:
    """A daemon that runs inside the block."""
    program = shutil.which(name, path=PATH)
    assert program is not None
    with (here / f"{name}.log").open("w") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def slurm_conf(here: Path) -> str:
    """The settings of a Slurm without accounting whose one node is this machine."""
    user, name = getuser(), socket.gethostname()
    settings = {
        "ClusterName": "toy",
        "SlurmctldHost": f"{name}(127.0.0.1)",
        "SlurmUser": user,
        "SlurmdUser": user,
        "SlurmctldPort": free_port(),
        "SlurmdPort": free_port(),
        "AuthInfo": f"socket={here}/socket",
        "StateSaveLocation": f"{here}/state",
        "SlurmdSpoolDir": f"{here}/spool",
        "SlurmctldPidFile": f"{here}/slurmctld.pid",
        "SlurmdPidFile": f"{here}/slurmd.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "ReturnToService": 2,
        "KillWait": 2,
        "SchedulerParameters": "batch_sched_delay=0",
        "NodeName": f"{NODE} NodeHostname={name} NodeAddr=127.0.0.1 CPUs={len(os.sched_getaffinity(0))}",
        "PartitionName": "toy Nodes=ALL Default=YES State=UP",
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
