"""Weights & Biases, offline: what was logged is read back from the files that `wandb sync` would send."""

import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stun_exp.tracker import wandb as tracking
from stun_exp.tracker.none import NoTracker
from stun_exp.tracker.protocol import harmless
from stun_exp.tracker.wandb import WandB

ROOT = Path(__file__).parents[2]
KURTOSIS = {stage: {"all": 3.5, "nonzero": 3.0} for stage in ("before", "experts", "weights")}
REPORT: dict[str, Any] = {
    "name": "STUN (OWL)",
    "fingerprint": "f1",
    "choices": {"model": "toy_moe"},
    "settings": {"sparsity": 0.4},
    "cost": {"prune": {"wall_seconds": 1.5, "peak_host_gib": 0.5, "peak_device_gib": None, "forward_passes": 2.0}},
    "sparsity": {"achieved": 0.39},
    "experts": {"ratio": 0.2},
    "expert_stage": {
        "plan_id": "0a1b2c3d",
        "reconstruction_error": 0.4,
        "per_layer": [{"layer": 0, "num_experts": 3, "cluster_sizes": [2, 1], "reconstruction_error": 0.4}],
    },
    "redundancy": {"load_gini": 0.1, "per_layer": [{"layer": 0, "num_experts": 3, "load_gini": 0.1}]},
    "diagnostics": {
        "kurtosis": KURTOSIS,
        "per_layer": [
            {"layer": 0, "reconstruction_error": 0.25, "sparsity": {"experts.0.w1": 0.3}, "kurtosis": KURTOSIS},
            {"layer": 1, "reconstruction_error": None, "sparsity": {"experts.0.w1": 0.3}, "kurtosis": KURTOSIS},
        ],
    },
    "skipping": {
        "calibration": 0.25,
        "evaluation": None,
        "per_layer": [{"layer": 0, "beta": 0.4, "calibration": 0.25, "evaluation": None}],
    },
    "metrics": {
        "toy_arc/acc,none": {"value": 0.5, "stderr": 0.1, "num_samples": 9, "num_fewshot": 0, "task_version": "1.0"}
    },
    "baseline": {"metrics": {"toy_arc/acc,none": {"value": 0.9, "stderr": 0.1}}},
}


@dataclass
class Logged:
    """What the files of one offline run hold."""

    folder: Path
    about: Any = None
    values: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Of each the files, by their names in it, and where they lie."""

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows."""
        content = json.loads((self.folder / "files" / self.values[name]["path"]).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    def config(self) -> dict[str, Any]:
        return {item.key: json.loads(item.value_json) for item in self.about.config.update}


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: 7 bytes, then blocks of 32 KiB as in a LevelDB log, with records cut into parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = file.read_bytes(), 7, b""
    while position < len(content):
        room = 2**15 - position % 2**15
        if room < 7:  # too little for the head of a part
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def logged(folder: Path) -> list[Logged]:
    """The offline runs in a folder."""
    found = []
    for run in sorted(folder.glob("wandb/offline-run-*")):
        one = Logged(run)
        (file,) = run.glob("*.wandb")
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                one.about = record.run
            elif kind == "history":
                for item in record.history.item:
                    name, *inner = item.nested_key  # a table or an image has several parts
                    value = json.loads(item.value_json)
                    if inner:
                        one.values.setdefault(name, {})[inner[0]] = value
                    else:
                        one.values[name] = value
            elif kind == "artifact":
                one.artifacts[record.artifact.type] = {
                    entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents
                }
        found.append(one)
    return found


@pytest.fixture(autouse=True)
def _no_login(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NETRC", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(home / name))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run, a point of the sweep in `demo`."""
    folder = tmp_path / "demo" / "method=owl,sparsity=0.4"
    folder.mkdir(parents=True)
    return written(folder)


def written(folder: Path, **changes: Any) -> Path:
    for name in tracking.LOGGED_FILES:
        (folder / name).write_text(json.dumps(REPORT | changes))
    return folder


def wandb_tracker(group: str | None = None, project: str = "test") -> WandB:
    return WandB(project=project, group=group, mode="auto")


def test_none_writes_nothing(tmp_path: Path) -> None:
    NoTracker().track(tmp_path, None)
    NoTracker().track_sweep(tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failure_is_told_and_harms_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with harmless(tmp_path):
        wandb_tracker().track(tmp_path, None)  # there is no report
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("warning: the tracker failed (FileNotFoundError: ")
    assert "the results are in" in said


@pytest.mark.slow
def test_a_run_is_offline_without_a_login(run: Path) -> None:
    wandb_tracker().track(run, None)
    (one,) = logged(run)
    assert (one.about.project, one.about.run_group, one.about.display_name) == ("test", "", "STUN (OWL)")
    assert one.config()["sparsity"] == 0.4
    assert one.config()["choices"] == {"model": "toy_moe"}
    scalars = {
        "cost/prune/wall_seconds": 1.5,
        "cost/prune/forward_passes": 2.0,
        "sparsity/achieved": 0.39,
        "experts/ratio": 0.2,
        "kurtosis/weights/nonzero": 3.0,
        "skipping/calibration": 0.25,
        "toy_arc/acc,none": 0.5,
        "unpruned/toy_arc/acc,none": 0.9,
    }
    assert {name: one.values[name] for name in scalars} == scalars
    assert "cost/prune/peak_device_gib" not in one.values, "what was not measured is no number"
    assert one.table("results") == [{"task/metric": "toy_arc/acc,none"} | REPORT["metrics"]["toy_arc/acc,none"]]
    assert [row["reconstruction_error"] for row in one.table("layers")] == [0.25, None]
    assert one.table("layers")[1]["kurtosis/experts/all"] == 3.5
    assert one.values["expert_stage/plan_id"] == "0a1b2c3d"
    assert one.values["redundancy/load_gini"] == 0.1
    assert one.table("damage") == [{"layer": 0, "num_experts": 3, "reconstruction_error": 0.4}]
    assert one.table("redundancy") == [{"layer": 0, "num_experts": 3, "load_gini": 0.1}]
    assert one.table("skipped") == REPORT["skipping"]["per_layer"]
    # The files themselves: copies in the home folder would stay there for good.
    assert one.artifacts["report"] == {name: run / name for name in tracking.LOGGED_FILES}
    import wandb

    assert wandb.run is None


def test_the_environment_can_turn_it_off(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    before = sorted(run.rglob("*"))
    wandb_tracker().track(run, "demo")
    wandb_tracker().track_sweep(run.parent, run.parent / "report")
    assert sorted(run.parent.rglob("*")) == [run, *before]


@pytest.mark.parametrize(
    ("mode", "environment", "given"),
    [
        ("auto", "offline", "offline"),
        ("auto", "online", "online"),
        ("auto", "dryrun", "offline"),
        ("auto", None, "offline"),
        ("online", "disabled", "online"),
        ("offline", "online", "offline"),
    ],
)
def test_the_environment_says_the_mode_unless_the_setting_does(
    mode: str, environment: str | None, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert WandB(project="test", group=None, mode=mode)._mode() == given


@pytest.mark.slow
def test_an_offline_run_by_the_environment(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    written(run, metrics={"toy_text/byte_perplexity,none": {"value": "Infinity", "stderr": None}})
    wandb_tracker().track(run, None)
    (one,) = logged(run)
    assert one.values["toy_text/byte_perplexity,none"] == float("inf")


@pytest.mark.slow
def test_a_run_that_skips_nothing_and_evaluates_nothing_is_logged(tmp_path: Path) -> None:
    written(tmp_path, skipping=None, metrics={}, baseline=None)
    (tmp_path / "samples.jsonl").unlink()
    wandb_tracker().track(tmp_path, None)
    (one,) = logged(tmp_path)
    assert not {"results", "skipped"} & one.values.keys()
    assert "samples.jsonl" not in one.artifacts["report"]


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_in_its_group_and_named_by_what_differs(run: Path, tmp_path: Path) -> None:
    wandb_tracker().track(run, "demo")
    other = tmp_path / "demo" / f"method=wanda,name={'x' * 200}"
    other.mkdir()
    wandb_tracker(group="mine").track(written(other), "demo")
    runs = [one.about for folder in (run, other) for one in logged(folder)]
    assert [about.run_group for about in runs] == ["demo", "mine"]
    assert runs[0].display_name == "method=owl,sparsity=0.4"
    assert runs[1].display_name.startswith("method=wanda,name=xxx")
    assert len(runs[1].display_name) == 128
    assert len({about.run_id for about in runs}) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from stun_exp.tracker import wandb as tracking
tracking._add_files = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
tracking.WandB(project="test", group=None, mode="offline").track(Path(sys.argv[1]), None)
"""


@pytest.mark.slow
def test_what_was_killed_goes_on_as_the_same_run_and_is_then_logged_no_more(run: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(run)], cwd=ROOT, env=os.environ, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    begun = json.loads((run / tracking.WANDB_MARK).read_text())
    assert begun["logged"] is None
    wandb_tracker().track(run, None)
    (one,) = logged(run)  # and no half of a run beside it, which `wandb sync` would send too
    assert one.about.run_id == begun["id"]
    assert one.artifacts["report"]
    (file,) = one.folder.glob("*.wandb")
    when = file.stat().st_mtime_ns
    wandb_tracker().track(run, None)
    assert [other.folder for other in logged(run)] == [one.folder]
    assert file.stat().st_mtime_ns == when


@pytest.mark.slow
def test_the_same_run_done_anew_continues_its_own_and_another_in_the_folder_is_another(run: Path) -> None:
    def ids() -> list[str]:
        return sorted(one.about.run_id for one in logged(run))

    wandb_tracker().track(run, None)
    (one,) = logged(run)
    first = one.about.run_id
    sent = one.folder.rename(run / "wandb" / f"offline-run-20260101_000000-{first}")  # some other second
    (sent / f"run-{first}.wandb.synced").touch()
    wandb_tracker().track(written(run, warnings=["again"]), None)
    assert ids() == [first, first], "what was sent is left alone"
    wandb_tracker().track(written(run, fingerprint="f2"), None)
    wandb_tracker(project="other").track(run, None)
    assert len(ids()) == 4
    assert len(set(ids())) == 3


@pytest.mark.slow
def test_a_sweep_ends_with_a_run_of_its_report(run: Path) -> None:
    sweep = run.parent
    report = sweep / "report"
    for folder in ("tables", "figures/toy"):
        (report / folder).mkdir(parents=True)
    (report / "index.html").write_text("<html></html>")
    (report / "tables" / "toy.csv").write_text("method,acc (%),lambda2\nSTUN,50.5,0.1\nOWL,,none\n")
    Image.new("RGB", (2, 2)).save(report / "figures/toy/kurtosis.png")
    wandb_tracker().track_sweep(sweep, report)
    (one,) = logged(sweep)
    assert (one.about.run_group, one.about.job_type, one.about.display_name) == ("demo", "report", "demo: report")
    assert one.table("tables/toy") == [
        {"method": "STUN", "acc (%)": 50.5, "lambda2": 0.1},
        {"method": "OWL", "acc (%)": None, "lambda2": "none"},
    ]
    assert one.values["figures/toy/kurtosis"]["_type"] == "image-file"
    assert (one.folder / "files" / one.values["figures/toy/kurtosis"]["path"]).is_file()
    assert one.artifacts["report"].keys() == {"index.html", "tables/toy.csv", "figures/toy/kurtosis.png"}
    wandb_tracker().track_sweep(sweep, report)
    assert len(logged(sweep)) == 1
    written(run, warnings=["a point more"])
    (report / "tables" / "toy.csv").write_text("method\nSTUN\n")
    wandb_tracker().track_sweep(sweep, report)
    (again,) = logged(sweep)
    assert again.about.run_id == one.about.run_id
    assert again.table("tables/toy") == [{"method": "STUN"}]


@pytest.mark.slow
def test_the_command_of_the_docs_finds_every_offline_run(run: Path) -> None:
    """Names of points have commas and equal signs in them."""
    wandb_tracker().track(run, "demo")
    (command,) = re.findall(r"^find .*wandb sync.*$", (ROOT / "docs/tracking.md").read_text(), re.M)
    words = shlex.split(command.replace("runs/demo", shlex.quote(str(run.parent))).replace("sync", "sync --dry-run"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(words, env=os.environ | {"PATH": path}, capture_output=True, text=True, cwd=run)
    assert "Would sync 1 run" in done.stdout + done.stderr


@pytest.mark.parametrize("content", ['{"my": "notes"}', "[]"])
def test_a_file_that_no_tracker_has_written_stays(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / tracking.WANDB_MARK).write_text(content)
    with pytest.raises(ValueError, match=rf"{tracking.WANDB_MARK}: no tracker has written it"):
        WandB(project="p", group=None, mode="offline").track(tmp_path, None)
    assert (tmp_path / tracking.WANDB_MARK).read_text() == content
