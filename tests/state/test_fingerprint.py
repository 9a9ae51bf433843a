"""The code that decided a result is told apart from the code that only shows it."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

import stun_exp
from stun_exp.state import fingerprint as module
from stun_exp.state.fingerprint import components, digests, fingerprint

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
    """Whether a comment added to a file changes the code of modules."""
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
    """A comment in a plot emptied the cache."""
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
