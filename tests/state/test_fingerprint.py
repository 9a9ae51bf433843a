"""The code that decided a result is told apart from the code that only shows it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree

import pytest
from hydra import compose, initialize_config_dir

import stun_exp
from stun_exp.config.build import specs_from
from stun_exp.config.conf import CONF
from stun_exp.pipeline.context import RunContext
from stun_exp.state import fingerprint as module
from stun_exp.state.fingerprint import components, digests, fingerprint

ROOT = Path(__file__).parents[2]
WANDA, MAGNITUDE = "stun_exp.unstructured_pruner.wanda", "stun_exp.unstructured_pruner.magnitude"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package, in which the code is looked up."""
    copy = Path(copytree(Path(stun_exp.__file__).parent, tmp_path / "stun_exp"))
    original = module._file.__wrapped__

    def moved(name: str) -> Path | None:
        found: Path | None = original(name)
        return found and copy / found.relative_to(Path(stun_exp.__file__).parent)

    monkeypatch.setattr(module, "_file", moved)
    yield copy
    module._looked_at.cache_clear()


def changes(package: Path, file: str, *modules: str) -> bool:
    """Whether a line of code added to a file changes the code of modules."""
    module._looked_at.cache_clear()
    before = fingerprint(modules, {})
    with (package / file).open("a") as handle:
        handle.write("BY_HAND = 1\n")
    module._looked_at.cache_clear()
    return fingerprint(modules, {}) != before


@pytest.mark.parametrize(
    "file",
    [
        *("report/figures/charts.py", "report/tables/results.py", "tracker/wandb.py", "cli/check.py"),
        *("config/settings.py", "utils/progress.py", "state/journal.py"),
    ],
)
def test_what_only_shows_or_keeps_results_decides_none(package: Path, file: str) -> None:
    """A line in a plot emptied the cache."""
    assert not changes(package, file, "stun_exp.pipeline.run", WANDA)


@pytest.mark.parametrize(
    "file",
    [
        *("pipeline/run.py", "pipeline/prune.py", "streaming/walk.py", "checkpoint/keys.py", "moe/layers.py"),
        *("evaluation/harness.py", "pipeline/layer_diagnostics.py"),
    ],
)
def test_what_every_run_goes_through_decides_all(package: Path, file: str) -> None:
    assert changes(package, file, "stun_exp.pipeline.run")


def test_a_method_decides_the_results_of_those_who_use_it(package: Path) -> None:
    """What it imports too, and nothing of who does without."""
    assert changes(package, "unstructured_pruner/wanda.py", "stun_exp.pipeline.run", WANDA)
    assert not changes(package, "unstructured_pruner/wanda.py", "stun_exp.pipeline.run", MAGNITUDE)
    assert changes(package, "unstructured_pruner/saliency.py", WANDA)
    assert changes(package, "unstructured_pruner/hessian.py", "stun_exp.unstructured_pruner.sparsegpt")
    assert not changes(package, "unstructured_pruner/hessian.py", "stun_exp.pipeline.run", WANDA)


def test_a_module_that_is_imported_by_its_name_counts(package: Path) -> None:
    """Which of the families' modules is known when a model of the family is met."""
    assert changes(package, "models/llama4.py", "stun_exp.pipeline.run")


def test_a_method_of_another_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text("from stun_exp.unstructured_pruner.masks import lowest\nimport json\n")
    monkeypatch.syspath_prepend(tmp_path)
    module._file.cache_clear()
    assert {"theirs", "stun_exp.unstructured_pruner.masks"} <= digests(["theirs"]).keys()


def test_components_are_found_at_any_depth() -> None:
    settings = {"a": {"_target_": "x.y.Z", "b": {"c": {"_target_": "q.R"}}}, "d": 1}
    assert components(settings) == ["x.y", "q"]


def test_nothing_is_imported_to_know() -> None:
    """A name that looks like a module and is none, a class in one say, is passed over."""
    assert "stun_exp.pipeline.run.nothing" not in digests(["stun_exp.pipeline.run.nothing", "no.such.package"])


# --- comments and docstrings


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ("x = 1\n", "x = 1  # of three\n\n\n# none\n", False),
        ("def f():\n    return 1\n", 'def f():\n    """Gives one."""\n    return 1\n', False),
        ("class A:\n    x: int = 0\n", 'class A:\n    x: int = 0\n    """How many."""\n', False),
        ('"""A module."""\nx = 1\n', "x = 1\n", False),
        ("def f(x):\n    return x\n", "def f(x):\n    return (\n        x\n    )\n", False),
        ("x = {1, 2}\n", "x = {1, 3}\n", True),
        ("x = 'a'\n", "x = 'b'\n", True),
        ("def f(x):\n    return x in ('a', 'b')\n", "def f(x):\n    return x in ('a', 'c')\n", True),
        ("def f(x=1):\n    return x\n", "def f(x=2):\n    return x\n", True),
        ("def f(x):\n    return x\n", "async def f(x):\n    return x\n", True),
        ("def f():\n    yield 1\n", "def f():\n    yield 2\n", True),
        ("f = lambda x: x + 1\n", "f = lambda x: x - 1\n", True),
        ("class A:\n    x: int\n", "class A:\n    x: float\n", True),
        ("class A:\n    y: int\n", "class A:\n    x: int\n", True),
    ],
)
def test_text_that_is_not_run_does_not_count(
    before: str, after: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.py").write_text(before)
    (tmp_path / "other.py").write_text(after)
    monkeypatch.syspath_prepend(tmp_path)
    module._file.cache_clear()
    digest = {name: digests([name])[name] for name in ("one", "other")}
    assert (digest["one"] != digest["other"]) == counts


def test_a_digest_is_that_of_another_process(tmp_path: Path) -> None:
    """The trap: sets of text are in another order in each."""
    (tmp_path / "one.py").write_text("def f(x):\n    return x in {'a', 'b', 'c', 'd', 'e'}\n")
    code = "from stun_exp.state.fingerprint import digests; print(digests(['one'])['one'])"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


# --- the stages of a run

DECIDE = ("structure", "experts", "allocate", "prune", "recover", "verify", "export", "skip", "evaluate", "report")


@pytest.fixture
def stages(package: Path, tmp_path: Path) -> Callable[[str], set[str]]:
    """(file) -> the stages whose fingerprints a line of code in it changes, of a run by STUN, OWL and Wanda."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["name=test", "eval=none", "cache=none"])
    (spec,) = specs_from(cfg, tmp_path / "run")

    def fingerprints() -> dict[str, str]:
        module._looked_at.cache_clear()
        run = RunContext(spec, {})
        return {stage: run.fingerprint(stage) for stage in DECIDE}

    def changed(file: str) -> set[str]:
        before = fingerprints()
        with (package / file).open("a") as handle:
            handle.write("BY_HAND = 1\n")
        after = fingerprints()
        return {stage for stage in DECIDE if before[stage] != after[stage]}

    return changed


def since(stage: str) -> set[str]:
    return set(DECIDE[DECIDE.index(stage) :])


@pytest.mark.parametrize(
    ("file", "first"),
    [
        ("structured_pruner/none.py", "structure"),
        ("pipeline/structure.py", "structure"),
        ("expert_pruner/stun/stun.py", "experts"),
        ("expert_pruner/stun/cut.py", "experts"),
        ("moe/observe.py", "structure"),
        ("checkpoint/keys.py", "structure"),
        ("pipeline/experts.py", "experts"),
        ("allocation/owl.py", "allocate"),
        ("unstructured_pruner/wanda.py", "allocate"),  # OWL looks at its saliencies
        ("pipeline/prune_layer.py", "prune"),
        ("pipeline/diagnostics.py", "prune"),
        ("pipeline/verify.py", "verify"),
        ("export/none.py", "export"),
        ("pipeline/skip.py", "skip"),
        ("evaluation/harness.py", "evaluate"),
        ("pipeline/run.py", "report"),
    ],
)
def test_code_undoes_the_stages_from_its_own_on(file: str, first: str, stages: Callable[[str], set[str]]) -> None:
    assert stages(file) == since(first)


@pytest.mark.parametrize(
    "file",
    [
        *("report/figures/charts.py", "report/tables/results.py", "tracker/wandb.py", "cli/check.py"),
        *("config/settings.py", "utils/progress.py", "state/journal.py", "pipeline/context.py"),
        *("unstructured_pruner/sparsegpt.py", "expert_pruner/reap.py", "recovery/expert_distillation.py"),
    ],
)
def test_code_that_no_stage_runs_undoes_none(file: str, stages: Callable[[str], set[str]]) -> None:
    assert stages(file) == set()


def test_what_later_stages_depend_on_undoes_no_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap: a newer lm-eval, or text for a recovery, had plans made again."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        (spec,) = specs_from(compose("config", ["name=test", "eval=none", "cache=none"]), tmp_path / "run")

    def fingerprints(**inputs: str) -> dict[str, str]:
        run = RunContext(spec, {})
        run.inputs = {"calibration tokens": "a", "training tokens": "a", **inputs}
        return {stage: run.fingerprint(stage) for stage in DECIDE}

    def changed(now: dict[str, str]) -> set[str]:
        return {stage for stage in DECIDE if now[stage] != whole[stage]}

    whole = fingerprints()
    assert changed(fingerprints(**{"calibration tokens": "b"})) == since("structure")
    assert changed(fingerprints(**{"training tokens": "b"})) == since("recover")
    monkeypatch.setattr("stun_exp.pipeline.context.version", lambda package: "another")
    assert changed(fingerprints()) == since("evaluate")


def test_a_setting_undoes_the_stages_that_it_affects(tmp_path: Path) -> None:
    def fingerprints(*overrides: str) -> dict[str, str]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", ["name=test", "eval=none", "cache=none", *overrides])
        (spec,) = specs_from(cfg, tmp_path / "run")
        run = RunContext(spec, {})
        return {stage: run.fingerprint(stage) for stage in DECIDE}

    whole = fingerprints()
    firsts = {
        "expert_pruner.lambda2=0.5": "experts",
        "sparsity=0.6": "allocate",
        "unstructured_pruner.attention=false": "allocate",
        "seed=1": "recover",
        "export=hf": "export",
        "skipping=dynamic": "skip",
        "eval=toy": "evaluate",
        "name=x": "report",
        "model.path=bundled:toy_arctic": "report",  # what is in it is known by its content
        "stream=out_of_core": None,
        "tracker=wandb": None,
        "resume=restart": None,
    }
    for override, first in firsts.items():
        now = fingerprints(override)
        assert {s for s in DECIDE if now[s] != whole[s]} == (since(first) if first else set()), override


def test_what_only_measures_the_expert_stage_changes_no_pruned_weight() -> None:
    """An edit of it, or of the table of plans, must not have a long run pruned again."""
    for stage in ("experts", "allocate", "prune"):
        assert "stun_exp.pipeline.damage" not in digests([f"stun_exp.pipeline.{stage}"])
    assert "stun_exp.pipeline.damage" in digests(["stun_exp.pipeline.run"])
