"""A search by Optuna: typos are found, it goes on where it was, and a point that fails does not stop it."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from stun_exp.cli.check import check
from stun_exp.cli.main import CONF
from stun_exp.config.build import ConfigError

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="no Optuna: pip install -e '.[optuna]'")
# Of Optuna 2.10 and SQLAlchemy 2, when the plugin is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*declarative_base")

SMALL = ["calibration.num_sequences=8", "eval.limit=4"]
SMALL += [f"~eval.benchmarks.toy_{name}" for name in ("gsm8k", "hellaswag", "mmlu", "text")]


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command with a few more arguments, into the same folder each time."""

    def go(*arguments: str) -> "subprocess.CompletedProcess[str]":
        own = [f"hydra.sweep.dir={tmp_path}/sweep", f"cache.path={tmp_path}/cache"]
        command = [str(Path(sys.executable).with_name("stun")), "-m", "hydra/sweeper=search", *own, *SMALL, *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    return go


@needs_optuna
@pytest.mark.slow
def test_a_search_ends_with_the_best_and_goes_on_where_it_was(
    search: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    wanted = ("expert_pruner.lambda2=interval(0,2)", "hydra.sweeper.n_trials=2")
    done = search(*wanted)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "sweep" / "optimization_results.yaml"
    first = yaml.safe_load(results.read_text())
    assert 0 <= first["best_params"]["expert_pruner.lambda2"] <= 2
    assert 0 < first["best_value"] < 1
    reports = {file: file.stat().st_mtime_ns for file in tmp_path.glob("sweep/expert_pruner.lambda2=*/report.json")}
    assert len(reports) == 2
    done = search(*wanted[:1], "hydra.sweeper.n_trials=3")
    assert done.stderr.count("already complete") == 2
    assert {file: file.stat().st_mtime_ns for file in reports} == reports
    assert len(list(tmp_path.glob("sweep/expert_pruner.lambda2=*/report.json"))) == 3
    assert yaml.safe_load(results.read_text())["best_value"] <= first["best_value"]


@needs_optuna
@pytest.mark.slow
def test_trials_of_one_plan_are_evaluated_once(
    search: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    """A layer has more clusters than 2, and below kappa alone it is merged: the values differ, and the plans do not."""
    done = search("expert_pruner.kappa=1,2", "hydra.sweeper.n_trials=4")  # of which some have the same value
    assert done.returncode == 0, done.stderr
    reports = [json.loads(file.read_text()) for file in tmp_path.glob("sweep/expert_pruner.kappa=*/report.json")]
    assert len(reports) == 2
    assert len({report["expert_stage"]["plan_id"] for report in reports}) == 1
    assert len([file for file in tmp_path.glob("cache/evaluations/*/*") if file.is_file()]) == 1
    logs = [file.read_text() for file in tmp_path.glob("sweep/*/run.log")]
    assert sorted("an equal checkpoint was measured before" in text for text in logs) == [False, True]


@needs_optuna
@pytest.mark.slow
def test_points_that_fail_are_told_and_do_not_stop_a_search(
    search: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    done = search("calibration.sequence_length=int(interval(99998,99999))", "hydra.sweeper.n_trials=3")
    assert done.returncode == 1
    assert "of the sweep's runs failed" in done.stderr
    assert "the model takes at most" in done.stderr
    assert "Traceback" not in done.stderr


@needs_optuna
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("expert_pruner.lamda2=interval(0,2)", "did you mean expert_pruner.lambda2"),
        ("expert_pruner.ratio=interval(0.1,1.5)", "expert_pruner.ratio=1.5: must be"),
        ("hydra.sweeper.n_trial=3", "'n_trial' not in 'OptunaSweeperConf'"),
        ("hydra/sweeper/sampler=tpx", "Available options in 'hydra/sweeper/sampler'"),
    ],
)
def test_mistakes_are_found_before_the_first_point(argument: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(["-m", "hydra/sweeper=search", argument], CONF)
    right = ["-m", "hydra/sweeper=search", "expert_pruner.lambda2=tag(log,interval(0.01,2))", "sparsity=0.3,0.4"]
    assert check(right, CONF) == right


def test_a_plugin_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Plugins.instance()  # registers those that are
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["sweeper"], "optuna.yaml", raising=False)
    with pytest.raises(ConfigError) as error:
        check(["-m", "hydra/sweeper=search", "expert_pruner.lambda2=interval(0,2)"], CONF)
    assert list(error.value.mistakes) == [
        "hydra/sweeper=search: its plugin is not installed; pip install 'stun-exp[optuna]'"
    ]


@needs_optuna
@pytest.mark.slow
def test_points_that_lack_what_is_searched_over_are_one_point(
    search: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    """Chosen together, they would be in one folder at once; the search is told the same of each."""
    wanted = ("method=wanda,stun_owl", "sparsity=0.4", "expert_pruner.ratio=interval(0.1,0.2)")
    done = search(*wanted, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=4", "hydra/launcher=joblib")
    assert done.returncode == 0, done.stderr
    assert "expert_pruner.ratio=interval(0.1,0.2): without effect in method=wanda" in done.stderr
    runs = [report.parent.name for report in tmp_path.glob("sweep/*/report.json")]
    assert sorted(runs)[-1] == "method=wanda"
    assert all(name.startswith("expert_pruner.ratio=0.1") for name in sorted(runs)[:-1])
    assert len(runs) <= 4
