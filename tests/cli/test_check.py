"""A command line is checked whole, sweeps included, before a job starts or anything heavy is imported."""

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from stun_exp.cli.check import check, settings_of
from stun_exp.cli.composing import UNNAMED
from stun_exp.config.build import ConfigError


def test_a_right_command_line_passes_unchanged(conf: Path) -> None:
    argv = ["model.path=x", "experiment=demo/uncut", "+eval.limits.a=1", "+benchmark@eval.benchmarks.b=a"]
    argv += ["eval.benchmarks.b.shots=2", "~eval.benchmarks.a", "hydra.job.chdir=false", "++seed=2"]
    assert check(argv, conf) == argv


def test_what_is_no_run_is_left_to_hydra(conf: Path) -> None:
    for flag in ("--help", "--hydra-help", "--info=defaults", "-sc"):
        assert check([flag, "nonsense"], conf) == [flag, "nonsense"]


def test_choices_in_a_folder_of_the_user_s_are_checked_like_ours(
    conf: Path, mistakes: Callable[..., list[str]], tmp_path: Path
) -> None:
    file = tmp_path / "expert_pruner" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("{_target_: parts.Cut, ratio: 0.25, method: mean, layers: [1], top: auto}")
    (tmp_path / "config.yaml").write_text("seed: -1")  # adds choices, and is no other config
    argv = [f"--config-dir={tmp_path}", "expert_pruner=mine", "model.path=x"]
    assert check(argv, conf) == argv
    assert check(["-m", *argv, "seed=0,1"], conf)
    assert mistakes(f"--config-dir={tmp_path}", "expert_pruner=mien", "sed=1") == [
        "expert_pruner=mien: no such choice; did you mean mine? (choices: cut, mine, none)",
        "sed: no such setting; did you mean seed?",
    ]
    assert "no such choice" in mistakes("expert_pruner=mine")[0]  # it is gone with the command
    assert mistakes("-cd", "/not/there", "sed=1") == [
        "--config-dir=/not/there: no such folder; give one with folders like conf/ has"
    ]


LONG = {"-cn": "--config-name", "-cp": "--config-path"}


@pytest.mark.parametrize("flag", [*LONG, *LONG.values()])
def test_there_is_no_other_config(mistakes: Callable[..., list[str]], flag: str) -> None:
    (said,) = mistakes(flag, "other", "--help")
    assert said.startswith(f"{LONG.get(flag, flag)}: there is one config")


def test_showing_a_config_checks_names_only(conf: Path) -> None:
    assert check(["--cfg", "job", "seed=-1"], conf)  # and model.path is missing
    with pytest.raises(ConfigError, match="did you mean seed"):
        check(["--cfg", "job", "sed=-1"], conf)


def test_every_value_of_a_sweep_is_checked_and_none_twice(mistakes: Callable[..., list[str]]) -> None:
    argv = ["sparsity=0.3,2", "seed=1,-1", "expert_pruner=cut,none"]
    said = mistakes("-m", *argv)
    assert said == [
        "sparsity=2: must be at least 0 and below 1",
        "seed=-1: must be at least 0",
    ]


def test_the_ends_of_an_interval_are_checked_and_its_name(mistakes: Callable[..., list[str]]) -> None:
    """What other sweepers than Hydra's own choose lies between them."""
    assert mistakes("-m", "expert_pruner.ratio=interval(0.1,2)", "sed=interval(0,1)") == [
        "sed: no such setting; did you mean seed?",
        "expert_pruner.ratio=2.0: must be at least 0 and below 1",
    ]
    assert mistakes("-m", "seed=interval(0,1)")[0].startswith("seed=0.0: must be a whole number")


def test_the_grid_of_an_experiment_is_checked_too(conf: Path, mistakes: Callable[..., list[str]]) -> None:
    assert mistakes("-m", "experiment=wrong") == [
        "expert_pruner=nne: no such choice; did you mean none? (choices: cut, none)",
        "sparsity=2: must be at least 0 and below 1",
    ]
    typed_wins = ["sparsity=0.3", "expert_pruner=cut"]
    assert check(["-m", "experiment=wrong", *typed_wins, "model.path=x"], conf)


def test_one_point_of_a_grid_is_a_run(conf: Path) -> None:
    point = ["experiment=grid", "sparsity=0.5", "model.path=x"]
    assert check(point, conf) == point
    settings: Any = settings_of(point, conf)
    assert (settings.sparsity, settings.seed) == (0.5, 7)


def test_sweeping_over_grids_is_a_mistake(mistakes: Callable[..., list[str]]) -> None:
    # Hydra reads the grid of the first composition only, and would ignore these
    assert "run one at a time" in mistakes("-m", "experiment=grid,globbed")[0]
    assert "run one at a time" in mistakes("-m", "experiment=grid,swapped")[0]


def test_globs_reach_into_folders(conf: Path, mistakes: Callable[..., list[str]]) -> None:
    # Hydra's own finds nothing there, and runs zero jobs without a word
    assert check(["-m", "model.path=x", "experiment=glob(demo/*)"], conf) == [
        "-m",
        "model.path=x",
        "experiment=demo/dense,demo/uncut",
        f"{UNNAMED}=[dry_run,resume,model.path]",
    ]
    assert check(["model.path=x", "experiment=globbed", "-m"], conf) == [
        "model.path=x",
        "experiment=globbed",
        "expert_pruner=cut,none",
        f"{UNNAMED}=[dry_run,resume,model.path,experiment]",
        "-m",
    ]
    assert mistakes("-m", "experiment=glob(d*)") == [
        "experiment=glob(d*): matches nothing (choices: globbed, grid, swapped, wrong, demo/dense, demo/uncut)"
    ]


def test_an_experiment_beats_its_method_and_what_is_typed_beats_both(conf: Path) -> None:
    def got(*typed: str) -> tuple[str, int, str]:
        settings: Any = settings_of([*typed, "model.path=x"], conf)
        return settings.name, settings.seed, type(settings.expert_pruner).__name__

    assert got("method=weights") == ("weights alone", 0, "Off")
    assert got("experiment=swapped") == ("weights alone", 7, "Cut")
    assert got("experiment=swapped", "seed=2", "expert_pruner=none", "name=mine") == ("mine", 2, "Off")
    assert got("seed=2", "expert_pruner=cut", "experiment=demo/uncut") == ("stun", 2, "Cut")


def no_eos(*_: object) -> None:
    raise ValueError("the tokenizer has no end-of-text token; pass another model")


def test_a_good_run_gets_settings_directory_and_plain_config(
    stun: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    seen: list[Any] = []
    assert stun(lambda *args: seen.append(args), "model.path=x", "sparsity=0.5") == (0, "")
    (((settings, config, out, _),), choices, sweep) = seen[0]
    assert sweep is None
    assert (settings.sparsity, settings.name, out) == (0.5, "stun", tmp_path / "out")
    assert config["model"] == {"_target_": "parts.Model", "path": "x"}
    assert (choices["expert_pruner"], choices["method"]) == ("cut", None)


def test_mistakes_end_with_2(stun: Callable[..., tuple[int, str]]) -> None:
    assert stun(print, "sed=1") == (
        2,
        "stun: 2 mistakes, nothing was run\n"
        "  sed: no such setting; did you mean seed?\n"
        "  model.path: required; pass model.path=DIR\n",
    )


def test_what_only_hydra_finds_ends_with_2_and_no_traceback(stun: Callable[..., tuple[int, str]]) -> None:
    for argv in ("model.path=x +seed=1", "--help sed=1", "-c job -m", "-m model.path=x seed=int(interval(0,1))"):
        code, said = stun(print, *argv.split())
        assert code == 2
        assert "Traceback" not in said


def test_a_value_error_of_ours_is_one_line_and_1(stun: Callable[..., tuple[int, str]]) -> None:
    ours = FunctionType(no_eos.__code__, {"__name__": "stun_exp.pipeline.budget", "__builtins__": __builtins__})
    code, said = stun(ours, "model.path=x")
    assert code == 1
    assert said.splitlines() == ["error: the tokenizer has no end-of-text token; pass another model"]


def test_a_failed_job_of_a_sweep_is_named(stun: Callable[..., tuple[int, str]]) -> None:
    def full(*args: Any) -> None:
        raise OSError("x/checkpoint: the disk is full")

    code, said = stun(full, "-m", "model.path=x", "sparsity=0.4,0.5")
    assert code == 1
    assert said.splitlines() == [
        "error: x/checkpoint: the disk is full",
        "in the job model.path=x sparsity=0.4",
        "error: the same as before",
        "in the job model.path=x sparsity=0.5",
        "2 of the sweep's runs failed; the same command tries them again:",
        "  sparsity=0.4: x/checkpoint: the disk is full",
        "  sparsity=0.5: the same",
    ]


def test_several_sparsities_in_one_job_are_several_points(stun: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """Each checked by itself, and in a folder of its own."""
    seen: list[Any] = []
    assert stun(lambda *args: seen.append(args), "model.path=x", "sparsity=[0.4,0.5]") == (0, "")
    first, second = seen[0][0]
    assert (first.settings.sparsity, second.settings.sparsity) == (0.4, 0.5)
    assert (first.config["sparsity"], second.out) == (0.4, tmp_path / "out" / "sparsity=0.5")
    assert "sparsity=[0.4, 0.1]: below expert_pruner.ratio" in stun(print, "model.path=x", "sparsity=[0.4,0.1]")[1]


def test_a_launcher_that_loses_a_worker_ends_with_what_is_on_disk(
    stun: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises where Hydra does not expect it, and the sweep's end is not called."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    launch = BasicLauncher.launch

    def lose_one(self: Any, *args: Any, **kwargs: Any) -> None:
        launch(self, *args, **kwargs)
        raise RuntimeError("a worker was killed")

    monkeypatch.setattr(BasicLauncher, "launch", lose_one)
    code, said = stun(lambda *_: None, "-m", "model.path=x", "sparsity=0.4,0.5")
    assert code == 1
    assert said.splitlines()[0] == "error: a worker was killed"
    assert "  sparsity=0.4: did not end; it was killed, or is still running" in said


@pytest.mark.parametrize(("sweep", "setting"), [([], "hydra.run.dir"), (["-m", "seed=0,1"], "hydra.sweep.dir")])
def test_a_folder_that_hydra_cannot_make_is_one_line_and_1(
    stun: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, sweep: list[str], setting: str
) -> None:
    """As where the disk is full, which the check cannot see."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device", "out/.hydra/config.yaml")

    monkeypatch.setattr("hydra.core.utils._save_config", full)
    why = "out/.hydra/config.yaml: cannot be written (No space left on device)"
    said = f"error: {why}; choose another folder with {setting}=DIR"
    code, told = stun(print, *sweep, "model.path=x")
    assert (code, told.splitlines()[0]) == (1, said)
    assert "Traceback" not in told


def test_a_bug_keeps_its_traceback_but_not_hydra_s(stun: Callable[..., tuple[int, str]]) -> None:
    code, said = stun(no_eos, "model.path=x")
    assert code == 1
    assert "Traceback" in said
    assert "in no_eos" in said
    assert "run_job" not in said


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(stun: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    seen: list[Any] = []

    def note(points: Any, *_: Any) -> None:
        for settings, _config, out, _warnings in points:
            seen.append((settings.sparsity, settings.seed, out.relative_to(tmp_path).as_posix()))
            (out / "report.json").write_text('{"settings": {"eval": {}}}')

    assert stun(note, "-m", "experiment=grid", "model.path=x")[0] == 0
    assert seen == [
        (0.3, 7, "grid/sparsity=0.3"),
        (0.4, 7, "grid/sparsity=0.4"),
    ]
    seen.clear()
    assert stun(note, "-m", "experiment=grid", "model.path=x", "sparsity=0.5", "seed=1,2")[0] == 0
    assert [point[:2] for point in seen] == [(0.5, 1), (0.5, 2)]  # what is typed beats the grid


def names(conf: Path, *argv: str) -> "set[str]":
    """The folders of a sweep, as Hydra names them."""
    *typed, named = check(["-m", "model.path=/a/b/c", *argv], conf)[1:]
    assert named.startswith(UNNAMED)
    jobs = product(
        *([f"{key}={value}" for value in text.split(",")] for key, _, text in (t.partition("=") for t in typed))
    )
    with initialize_config_dir(str(conf), version_base="1.3"):
        return {compose("config", [*job, named], return_hydra_config=True).hydra.sweep.subdir for job in jobs}


def test_a_sweep_s_folders_are_named_by_what_differs(conf: Path) -> None:
    """Not by what is the same in all, nor by what changes nothing; a grid's settings, even if one value was typed."""
    assert names(conf, "sparsity=0.3,0.5", "seed=1", "name=n") == {"sparsity=0.3", "sparsity=0.5"}
    assert names(conf, "seed=1,2", "dry_run=true,false") == {"seed=1", "seed=2"}
    assert names(conf, "seed=1,2", "save=true,false") == {
        f"save={a},seed={b}" for a in ("true", "false") for b in (1, 2)
    }
    assert names(conf, "experiment=grid", "seed=1", "sparsity=0.4") == {"sparsity=0.4"}
    argv = ["-m", "model.path=x", "seed=1"]
    assert check(argv, conf) == argv  # one run, named by all of it


def test_a_sweep_into_the_folders_of_another_is_refused(
    stun: Callable[..., tuple[int, str]], tmp_path: Path, conf: Path
) -> None:
    """Before anything is run; the same command goes on, with what changes nothing in it."""

    def leave(points: Any, *_: Any) -> None:
        for _settings, config, out, _warnings in points:
            (out / "config.yaml").write_text(yaml.safe_dump(config))
            (out / "report.json").write_text('{"settings": {"eval": {}}}')

    sweep = ["-m", "model.path=x", "sparsity=0.4,0.5"]
    assert stun(leave, *sweep)[0] == 0
    assert stun(leave, *sweep)[0] == 0
    assert stun(leave, *sweep, "dry_run=true")[0] == 0
    assert stun(leave, *sweep, "cache=none")[0] == 0
    said = (
        "hydra.sweep.dir=out: a run of that name has other settings there (eval.limits.b: None -> 2, seed: 0 -> 1); "
        "pass another hydra.sweep.dir, or resume=restart to replace it"
    )
    assert stun(leave, *sweep, "seed=1", "+eval.limits.b=2") == (2, f"stun: 1 mistake, nothing was run\n  {said}\n")
    assert stun(leave, *sweep, "seed=1", "hydra.sweep.dir=other")[0] == 0
    assert stun(leave, *sweep, "seed=1", "resume=restart")[0] == 0
    # and where the check cannot know the name
    assert stun(leave, *sweep, "hydra.sweep.subdir=own${sparsity}")[0] == 0
    code, told = stun(leave, *sweep, "hydra.sweep.subdir=own${sparsity}", "seed=1")
    assert code == 1
    assert "error: hydra.sweep.dir=out: a run of that name has other settings there (seed: 0 -> 1)" in told


def in_a_process(*argv: str) -> subprocess.CompletedProcess[str]:
    code = f"""if True:
        import sys
        from stun_exp.cli.main import main
        sys.argv[1:] = {argv}
        try:
            main()
        finally:
            print("heavy:", sorted({"torch", "transformers", "datasets", "wandb"} & sys.modules.keys()))
        """
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_mistake_is_answered_before_anything_heavy_is_imported() -> None:
    # the sweep builds every component of conf/ that the demo uses; the mistake is in the last value
    wrong = (["-m", "experiment=demo", "seed=0,-1"], ["eval=paper", "tracker=wandb", "seed=-1"], ["inspect", "seed=-1"])
    for argv in (*wrong, ["--help"], ["inspect", "--help"]):
        done = in_a_process(*argv)
        assert done.stdout.endswith("heavy: []\n"), done.stdout + done.stderr
        assert done.returncode == (2 if argv in wrong else 0)


def test_the_settings_of_one_run_without_running_it(conf: Path) -> None:
    settings: Any = settings_of(["model.path=x", "seed=3", "expert_pruner.ratio=0.1"], conf)
    assert (settings.model.path, settings.seed, settings.expert_pruner.ratio) == ("x", 3, 0.1)
    assert settings.name == "stun"  # what Hydra knows of the job is there
    with pytest.raises(ConfigError, match=r"(?s)did you mean seed.*model\.path: required"):
        settings_of(["sed=1"], conf)
    with pytest.raises(ConfigError, match="seed=1,2: several values"):
        settings_of(["model.path=x", "seed=1,2"], conf)
    with pytest.raises(ConfigError, match="--cfg: only settings"):
        settings_of(["--cfg", "job"], conf)
