"""Every launcher is chosen by its name alone, and a mistake in its settings is answered before a point is run."""

import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from stun_exp.cli.check import check
from stun_exp.cli.main import CONF
from stun_exp.config.build import ConfigError

LAUNCHERS = sorted(file.stem for file in (CONF / "hydra/launcher").glob("*.yaml"))

# Said at the command line by nobody: the filter of stun_exp.__main__, which pytest puts aside.
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher/")


def test_the_four() -> None:
    assert LAUNCHERS == ["joblib", "local", "ray", "slurm"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_is_a_launcher_that_hydra_has(launcher: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True).hydra.launcher
    known = {f"{found.__module__}.{found.__qualname__}" for found in Plugins.instance().discover(Launcher)}
    assert settings._target_ in known
    argv = ["-m", f"hydra/launcher={launcher}", "sparsity=0.3,0.4"]
    assert check(argv, CONF) == argv


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("hydra/launcher=jolib", "Could not find 'hydra/launcher/jolib'.* joblib local ray"),
        ("hydra/launcher=joblib hydra.launcher.n_job=2", "Could not override 'hydra.launcher.n_job'"),
        ("hydra/launcher=joblib hydra.launcher.n_jobs=two", "'two' .* could not be converted to Integer"),
        ("hydra/launcher=slurm hydra.launcher.partitions=gpu", "Could not override 'hydra.launcher.partitions'"),
        ("hydra/launcher=ray hydra.launcher.ray.remote=2", "hydra.launcher.ray.remote"),
    ],
)
def test_mistakes(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(["-m", *wrong.split(), "sparsity=0.3,0.4"], CONF)


def test_a_launcher_that_is_not_installed_names_what_to_install() -> None:
    """Hydra itself would say so only after all points were composed, and not what to do."""
    absent = "hydra.launcher._target_=hydra_plugins.hydra_ray_launcher.absent.RayLauncher"
    with pytest.raises(ConfigError) as error:
        check(["-m", "hydra/launcher=ray", absent, "seed=0,-1"], CONF)
    assert list(error.value.mistakes) == [
        "hydra/launcher=ray: its plugin is not installed; pip install 'stun-exp[ray]'",
        "seed=-1: must be at least 0",
    ]


@pytest.mark.parametrize(
    ("code", "restarts", "queued_again"),
    [("137", None, True), ("137", "1", False), ("0", None, False), ("1", None, False), ("255", None, False)],
)
def test_slurm_queues_a_point_again_once_if_it_was_killed(
    code: str, restarts: str | None, queued_again: bool, tmp_path: Path
) -> None:
    """137 is how a shell counts SIGKILL; 255 is a point that has queued itself again at its time limit."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        setup = compose("config", ["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher.setup
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$*" > "$0.said"\n')
    (tmp_path / "scontrol").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3"}
    if restarts:
        environment["SLURM_RESTART_COUNT"] = restarts
    script = "\n".join([*setup, 'echo "$OMP_NUM_THREADS $SRUN_CPUS_PER_TASK"', f"(exit {code})"])
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("3 3\n", "")
    said = tmp_path / "scontrol.said"
    assert (said.read_text() if said.exists() else "") == ("requeue 7\n" if queued_again else "")
