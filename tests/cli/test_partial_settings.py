"""A setting that some points of a sweep lack is used in the others, and its points are run once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stun_exp.cli.check import check, checked
from stun_exp.cli.composing import UNNAMED
from stun_exp.config.conf import CONF

Stun = Callable[..., tuple[int, str]]
ONE = "expert_pruner.ratio=0.3: without effect in expert_pruner=none (expert_pruner=none has no ratio)"


@pytest.fixture
def points(stun: Stun, tmp_path: Path) -> Callable[..., tuple[list[tuple[str, float | None, tuple[str, ...]]], str]]:
    """(Folder, ratio and warnings of each run of a sweep, what was said on stderr)."""

    def go(*argv: str) -> tuple[list[tuple[str, float | None, tuple[str, ...]]], str]:
        seen: list[tuple[str, float | None, tuple[str, ...]]] = []

        def note(specs: Sequence[Any], *_: Any) -> None:
            for spec in specs:
                ratio = getattr(spec.settings.expert_pruner, "ratio", None)
                seen.append((spec.out.relative_to(tmp_path).as_posix(), ratio, spec.warnings))
                (spec.out / "report.json").write_text('{"settings": {"eval": {}}}')

        code, said = stun(note, "-m", "model.path=x", *argv)
        assert code == 0, said
        return seen, said

    return go


def test_a_setting_is_used_where_a_point_has_it_and_named_where_not(points: Callable[..., Any]) -> None:
    found, said = points("expert_pruner=cut,none", "expert_pruner.ratio=0.3")
    assert found == [("out/expert_pruner=cut", 0.3, ()), ("out/expert_pruner=none", None, (ONE,))]
    assert said.splitlines()[0] == ONE


def test_it_is_used_whatever_point_is_first(points: Callable[..., Any]) -> None:
    """Hydra composes the sweep's own config, and the first point, before any other."""
    found, _ = points("expert_pruner=none,cut", "expert_pruner.ratio=0.3")
    assert [ratio for _, ratio, _ in found] == [None, 0.3]
    found, _ = points("experiment=demo/uncut,swapped", "expert_pruner.ratio=0.3")
    assert [ratio for _, ratio, _ in found] == [None, 0.3]


def test_points_that_become_equal_are_run_once_and_so_it_is_said(points: Callable[..., Any]) -> None:
    found, said = points("expert_pruner=cut,none", "expert_pruner.ratio=0.1,0.2", "seed=0,1")
    assert [(folder, ratio) for folder, ratio, _ in found] == [
        ("out/expert_pruner.ratio=0.1,expert_pruner=cut,seed=0", 0.1),
        ("out/expert_pruner.ratio=0.1,expert_pruner=cut,seed=1", 0.1),
        ("out/expert_pruner.ratio=0.2,expert_pruner=cut,seed=0", 0.2),
        ("out/expert_pruner.ratio=0.2,expert_pruner=cut,seed=1", 0.2),
        ("out/expert_pruner=none,seed=0", None),
        ("out/expert_pruner=none,seed=1", None),
    ]
    told = "expert_pruner.ratio=0.1,0.2: without effect in expert_pruner=none (expert_pruner=none has no ratio)"
    assert said.splitlines()[0] == f"{told}; points that differ in nothing else are one, and run once"
    assert [warnings for *_, warnings in found] == [()] * 4 + [(told,)] * 2


def test_a_grid_of_an_experiment_is_swept_over_in_the_same_way(points: Callable[..., Any], conf: Path) -> None:
    """Beside what is typed, and with one value typed for it."""
    file = conf / "experiment" / "ratios.yaml"
    params = "{expert_pruner.ratio: '0.1,0.2', expert_pruner: 'none,cut', sparsity: '0.3,0.4'}"
    file.write_text(f"# @package _global_\n{{hydra: {{sweep: {{dir: ratios}}, sweeper: {{params: {params}}}}}}}")
    try:
        found, _ = points("experiment=ratios", "sparsity=0.4")
        assert [(folder, ratio) for folder, ratio, _ in found] == [
            ("ratios/expert_pruner=none,sparsity=0.4", None),
            ("ratios/expert_pruner.ratio=0.1,expert_pruner=cut,sparsity=0.4", 0.1),
            ("ratios/expert_pruner.ratio=0.2,expert_pruner=cut,sparsity=0.4", 0.2),
        ]
        found, _ = points("experiment=ratios", "sparsity=0.4", "expert_pruner.ratio=0.3", "resume=restart")
        assert [(folder, ratio) for folder, ratio, _ in found] == [
            ("ratios/expert_pruner=none,sparsity=0.4", None),
            ("ratios/expert_pruner.ratio=0.3,expert_pruner=cut,sparsity=0.4", 0.3),
        ]
    finally:
        file.unlink()


def test_the_same_sweep_finds_its_folders_again_and_another_is_refused(stun: Stun) -> None:
    """A point's settings are those that it has: a ratio that it lacks makes no other run of it."""
    import yaml

    def leave(specs: Sequence[Any], *_: Any) -> None:
        for spec in specs:
            (spec.out / "config.yaml").write_text(yaml.safe_dump(spec.config))
            (spec.out / "report.json").write_text('{"settings": {"eval": {}}}')

    sweep = ["-m", "model.path=x", "expert_pruner=cut,none"]
    assert stun(leave, *sweep, "expert_pruner.ratio=0.3")[0] == 0
    assert stun(leave, *sweep, "expert_pruner.ratio=0.3")[0] == 0
    code, said = stun(leave, *sweep, "expert_pruner.ratio=0.2")
    assert code == 2
    assert "expert_pruner.ratio: 0.3 -> 0.2" in said
    assert said.count("a run of that name has other settings") == 1


def test_what_no_point_has_is_a_mistake_as_before(mistakes: Callable[..., list[str]]) -> None:
    said = mistakes(
        "-m", "expert_pruner=cut,none", "expert_pruner.ratoi=0.3", "calibration=none", "calibration.shape=1"
    )
    assert said[:2] == [
        "expert_pruner.ratoi: no such setting; did you mean expert_pruner.ratio? (in the job with expert_pruner=cut)",
        "calibration.shape: no such setting; there is none here",
    ]
    # and so it is in one run
    said = mistakes("expert_pruner=none", "expert_pruner.ratio=0.3")
    assert said == ["expert_pruner.ratio: no such setting; there is none here"]
    said = mistakes("-m", "expert_pruner=none", "expert_pruner.ratio=0.3", "seed=0,1")
    assert said == ["expert_pruner.ratio: no such setting; there is none here"]


def test_its_values_are_checked_where_it_is(mistakes: Callable[..., list[str]]) -> None:
    said = mistakes("-m", "expert_pruner=none,cut", "expert_pruner.ratio=0.1,2")
    job = "(in the job with expert_pruner=cut expert_pruner.ratio=2)"
    assert said == [f"expert_pruner.ratio=2: must be at least 0 and below 1 {job}"]


@pytest.mark.parametrize("order", ["cut,none", "none,cut"])
def test_a_value_taken_from_what_a_point_lacks_names_the_point(
    mistakes: Callable[..., list[str]], conf: Path, order: str
) -> None:
    said = mistakes("-m", f"expert_pruner={order}", "expert_pruner.ratio=0.3", "sparsity=${expert_pruner.ratio}")
    assert said == [
        "sparsity=${expert_pruner.ratio}: expert_pruner=none has no ratio to take it from; give such a point a value, "
        "in a sweep of its own (in the job with expert_pruner=none)"
    ]
    right = ["-m", "model.path=x", "expert_pruner.ratio=0.3,0.4", "sparsity=${expert_pruner.ratio}"]
    assert check(right, conf)


def test_several_choices_decide_together(conf: Path) -> None:
    """What is typed for a group beats the method; the line names the choices that matter, and no other."""
    experiments = ["experiment=demo/uncut,swapped", "model.path=x", "seed=0,1", "expert_pruner.ratio=0.3"]
    command = checked(["-m", *experiments, "expert_pruner=cut,none"], conf)
    assert command.told == [ONE]
    command = checked(["-m", *experiments], conf)
    assert command.told == [ONE.replace("in expert_pruner=none", "in experiment=demo/uncut")]


def test_hydra_is_given_it_to_add_and_names_no_folder_by_what_is_the_same(conf: Path) -> None:
    command = checked(["-m", "model.path=x", "expert_pruner=cut,none", "expert_pruner.ratio=0.3"], conf)
    assert command.argv == [
        "-m",
        "model.path=x",
        "expert_pruner=cut,none",
        "++expert_pruner.ratio=0.3",
        f"{UNNAMED}=[dry_run,resume,model.path,expert_pruner.ratio]",
    ]
    alike = ["-m", "model.path=x", "seed=0,1", "expert_pruner.ratio=0.3"]
    assert checked(alike, conf).told == []
    assert "++" not in "".join(checked(alike, conf).argv)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            ["method=stun_owl,wanda", "expert_pruner.ratio=0.2", "sparsity=0.4"],
            ["expert_pruner.ratio=0.2: without effect in method=wanda (expert_pruner=none has no ratio)"],
        ),
        (
            ["allocation=owl,uniform", "allocation.lamda=0.1"],
            ["allocation.lamda=0.1: without effect in allocation=uniform (allocation=uniform has no lamda)"],
        ),
        (
            ["unstructured_pruner=wanda,sparsegpt,magnitude", "unstructured_pruner.block_size=64"],
            [
                "unstructured_pruner.block_size=64: without effect in unstructured_pruner=wanda (unstructured_pruner="
                "wanda has no block_size); unstructured_pruner=magnitude (unstructured_pruner=magnitude has no "
                "block_size)"
            ],
        ),
        (
            ["method=stun_owl,wanda,owl", "expert_pruner.kappa=0"],
            ["expert_pruner.kappa=0: without effect in method=wanda, method=owl (expert_pruner=none has no kappa)"],
        ),
    ],
)
def test_the_methods_of_the_project_are_swept_over_with_settings_of_some(argv: list[str], told: list[str]) -> None:
    assert checked(["-m", *argv], CONF).told == told
