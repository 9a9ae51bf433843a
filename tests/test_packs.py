"""Every experiment's grid composes, builds and can be met, point by point; packs have a toy version and a head."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.cli.check import check
from stun_exp.cli.main import CONF
from stun_exp.config.build import ConfigError, build
from stun_exp.config.settings import Settings
from stun_exp.config.settings import specs_of as points_of
from stun_exp.pipeline.budget import budget_of, expected_counts
from stun_exp.pipeline.run import run
from stun_exp.report.tables.published_rows import published_rows

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(
    file.relative_to(CONF / "experiment").with_suffix("").as_posix() for file in CONF.glob("experiment/**/*.yaml")
)
TOYS = [name for name in EXPERIMENTS if name.startswith("toy/")]
OF_THE_BUNDLED_MODEL = ["demo", "expert_pruners", "laboratory"]
PACKS = [name for name in EXPERIMENTS if name not in (*TOYS, *OF_THE_BUNDLED_MODEL)]
assert PACKS
# The same point on less data; what it does is the same.
SMALL = ["eval.limit=2", "calibration.num_sequences=4", "calibration.sequence_length=128"]
MOST_POINTS_OF_TOYS = 260  # an hour on two cores


@pytest.fixture(scope="module", autouse=True)
def _maths_text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where we are there is the file that calibration=math reads, which is the user's to make."""
    here = tmp_path_factory.mktemp("here")
    (here / "data").mkdir()
    (here / "data" / "math.jsonl").write_text("")
    with contextlib.chdir(here):
        yield


class Point(NamedTuple):
    """One point of a grid, as Hydra would run it."""

    settings: Any
    config: dict[str, Any]
    choices: dict[str, Any]


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="stun"):
        return compose("config", list(overrides), return_hydra_config=True)


def point_of(*overrides: str) -> Point:
    """What `overrides` compose to; choices alone are composed, and once, because that takes ten times the rest."""
    texts = [OverridesParser.create().parse_override(text) for text in overrides]
    is_choice = [(CONF / text.key_or_group).is_dir() for text in texts]
    cfg = composed(*(text for text, yes in zip(overrides, is_choice, strict=True) if yes))
    HydraConfig.instance().set_config(cfg)
    plain = deepcopy(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    for text, yes in zip(texts, is_choice, strict=True):
        if not yes:
            OmegaConf.update(plain, text.key_or_group, text.value())
    return Point(build(plain), OmegaConf.to_container(plain, resolve=True), dict(cfg.hydra.runtime.choices))


@cache
def grid(experiment: str) -> list[list[str]]:
    """The overrides of each point, by the sweeper that Hydra runs them with."""
    texts = [f"{key}={value}" for key, value in composed(f"experiment={experiment}").hydra.sweeper.params.items()]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(texts), None)
    return jobs


@cache
def points(experiment: str) -> list[Point]:
    return [point_of(f"experiment={experiment}", *job) for job in grid(experiment)]


@cache
def architecture(card: str) -> Architecture:
    """A published model by the dimensions of its card."""
    dimensions = yaml.safe_load((CONF / f"model/{card}.yaml").read_text())["dimensions"]
    return Architecture(Path(card), torch.bfloat16, dimensions)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_point_builds(experiment: str) -> None:
    for point in points(experiment):
        assert isinstance(point.settings, Settings)


def test_a_typo_in_one_point_is_told_before_the_first_starts() -> None:
    assert check(["-m", "experiment=toy/lu_table2"], CONF)
    with pytest.raises(ConfigError, match=r"method=frequncy: no such choice; did you mean frequency\?"):
        check(["-m", "experiment=toy/lu_table2", "method=lu,frequncy"], CONF)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_points_have_folders_of_their_own(experiment: str) -> None:
    """runs/NAME/KEY=VALUE,KEY=VALUE: with no slash, which would make folders in folders, and nothing to quote."""
    names = [",".join(sorted(job)) for job in grid(experiment)]
    assert len(set(names)) == len(names)
    longest = max(range(len(names)), key=lambda i: len(names[i]))
    *_, unnamed = check(["-m", f"experiment={experiment}"], CONF)
    sweep = composed(f"experiment={experiment}", *grid(experiment)[longest], unnamed).hydra.sweep
    assert (sweep.dir, sweep.subdir) == (f"runs/{experiment}", names[longest])
    assert len(names[longest]) <= 150  # a folder's name has 255 bytes; typed overrides come on top
    assert not set("".join(names)) & set("/\\'\" ")


def test_a_sweep_goes_on_in_the_same_folders_whatever_is_logged_or_kept() -> None:
    asides = ["dry_run=true", "resume=restart", "cache.path=/x/y", "tracker=wandb", "tracker.mode=offline"]
    named = ["name=mine", "seed=3"]
    assert composed(*asides, *named).hydra.sweep.subdir == "name=mine,seed=3"
    everywhere = composed().hydra.job.config.override_dirname.exclude_keys
    assert not set(everywhere) - {"dry_run", "resume", *leaves("cache"), *leaves("tracker")}


def leaves(group: str) -> set[str]:
    """A group, and every setting that one of its choices has."""
    files = (yaml.safe_load(file.read_text()) for file in CONF.glob(f"{group}/*.yaml"))
    return {group, *(f"{group}.{key}" for content in files for key in content)}


@pytest.mark.parametrize("pack", PACKS)
def test_every_point_of_a_pack_can_be_met_by_the_published_model(pack: str) -> None:
    """The total is within reach and every layer keeps top_k experts: known from the dimensions, without weights."""
    for point in points(pack):
        settings, model = point.settings, architecture(point.choices["model"])
        counts = expected_counts(model, getattr(settings.expert_pruner, "ratio", 0.0))
        attention = settings.unstructured_pruner.attention if settings.unstructured_pruner.prunes else True
        for spec in points_of(settings, point.config, Path()):
            budget = budget_of(model, counts, spec.settings.sparsity, settings.sparsity_scope, attention)
            ratio = budget.weights_ratio()
            if not settings.unstructured_pruner.prunes:
                assert ratio <= 0.003, point.choices  # what is missing of whole experts in 64


@pytest.mark.parametrize("experiment", [*PACKS, *TOYS, "demo", "expert_pruners"])
def test_the_unpruned_model_is_beside_every_point_and_is_none(experiment: str) -> None:
    for point in points(experiment):
        assert point.settings.eval.baseline
        sparsity = point.settings.sparsity
        assert min(sparsity if isinstance(sparsity, tuple) else (sparsity,)) > 0


@pytest.mark.parametrize("experiment", [*PACKS, *TOYS])
def test_a_pack_sets_nothing_that_only_some_choices_have(experiment: str) -> None:
    """So that any of its groups can be typed: what is typed beats the pack."""
    toy = ["model=toy_moe", "calibration=toy", "eval=toy", "eval.limit=2"]
    typed = point_of(f"experiment={experiment}", *grid(experiment)[0], *toy)
    assert typed.settings.model.path == "bundled:toy_moe"
    assert typed.choices["calibration"] == typed.choices["eval"] == "toy"
    assert typed.settings.eval.limit == 2
    assert point_of(f"experiment={experiment}", *grid(experiment)[0], *toy[:2], "eval=none").choices["eval"] == "none"


def test_every_pack_has_a_toy_version_and_a_head() -> None:
    assert [f"toy/{pack}" for pack in PACKS] == TOYS
    for pack in PACKS:
        lines = (CONF / f"experiment/{pack}.yaml").read_text().splitlines()
        assert lines[0] == "# @package _global_"
        assert lines[1].startswith("# ")


def test_the_toy_versions_run_on_the_bundled_models_and_are_few() -> None:
    for toy in TOYS:
        for point in points(toy):
            assert point.settings.model.path.startswith("bundled:")
            assert (point.choices["calibration"].partition("_")[0], point.choices["eval"]) == ("toy", "toy")
    assert sum(len(grid(toy)) for toy in TOYS) <= MOST_POINTS_OF_TOYS


def test_a_toy_version_varies_what_its_pack_varies() -> None:
    for pack in PACKS:
        keys, toys = (list(dict(text.split("=") for text in grid(name)[0])) for name in (pack, f"toy/{pack}"))
        assert set(toys) == {*keys, "model"}
        methods, toys_methods = ({p.choices["method"] for p in points(name)} for name in (pack, f"toy/{pack}"))
        assert methods == toys_methods


METHODS = sorted(file.stem for file in CONF.glob("method/*.yaml"))
assert METHODS


def test_methods_have_names_of_their_own() -> None:
    names = [point_of(f"method={method}", "sparsity=0.2").settings.name for method in METHODS if method != "unpruned"]
    assert len(names) == len(set(names))
    assert point_of("method=unpruned").settings.name == "unpruned"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_how_and_not_how_much(method: str) -> None:
    """Experts alone make whatever sparsity is asked for; nothing else in the file moves it."""
    content = yaml.safe_load((CONF / f"method/{method}.yaml").read_text())
    assert content.keys() <= {"defaults", "name", "expert_pruner", "unstructured_pruner", "sparsity"}
    assert ("sparsity" in content) is (method == "unpruned")
    settings = point_of(f"method={method}", f"sparsity={0 if method == 'unpruned' else 0.3}").settings
    if not settings.unstructured_pruner.prunes and method != "unpruned":
        assert settings.expert_pruner.ratio == settings.sparsity == 0.3


def test_published_figures_have_a_point_in_their_pack() -> None:
    """But for Wanda 2:4 on GSM8K, which its own pack runs if asked to."""
    rows = [row for row in published_rows() if row["pack"] and row["our_method"] not in ("", "unpruned")]
    assert len(rows) > 200
    lacking = set()
    for row in rows:
        wanted = (row["model_card"], row["our_method"], float(row["sparsity"]))
        asked = dict(text.split("=") for text in row["our_settings"].split())
        for point in points(row["pack"]):
            same_text = asked.get("calibration", "c4") == point.choices["calibration"]
            if same_text and wanted == (point.choices["model"], point.choices["method"], point.settings.sparsity):
                break
        else:
            lacking.add((row["pack"], row["our_method"]))
    assert lacking == {("lu_gsm8k", "wanda_24")}


@pytest.mark.slow
@pytest.mark.parametrize("toy", TOYS)
def test_a_point_of_each_toy_version_runs(toy: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first one. All share a cache, so the unpruned model is measured once."""
    small = [*SMALL, f"cache.path={tmp_path_factory.getbasetemp() / 'cache'}"]
    if "recovery" in toy:
        small.append("recovery.num_sequences=8")
    if "stun_dense" in toy:
        small.append("structured_pruner.shots=1")
    overrides = [text for text in grid(toy)[0] if not text.startswith("calibration.num_sequences")]
    first = point_of(f"experiment={toy}", *overrides, *small)
    run(points_of(first.settings, first.config, tmp_path), first.choices)
    for point in points_of(first.settings, first.config, tmp_path):  # several, of several sparsities
        report = json.loads((point.out / "report.json").read_text())
        assert report["baseline"]["metrics"].keys() == report["metrics"].keys()


def stand_in(folder: Path, name: str, code: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\necho {name} $* >> {folder}/calls\n{code}\n")
    file.chmod(0o755)


def reproduced(folder: Path, *arguments: str) -> tuple[int, Sequence[str], str]:
    """(Exit code, the commands called, what was said on stderr) of reproduce.sh with stand-ins for our commands."""
    done = subprocess.run(
        [str(ROOT / "scripts" / "reproduce.sh"), *arguments],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "RUNS": "r", "RESULTS": "k"},
        capture_output=True,
        text=True,
        check=False,
    )
    calls = folder / "calls"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stderr


def test_a_pack_is_run_and_reported_on_even_if_points_failed(tmp_path: Path) -> None:
    stand_in(tmp_path, "stun", "exit 1")
    stand_in(tmp_path, "stun-report", "exit 0")
    assert reproduced(tmp_path, "lu_table2", "eval.limit=2", "seed=1,2") == (
        1,
        [
            "stun -m experiment=lu_table2 hydra.sweep.dir=r/lu_table2 eval.limit=2 seed=1,2",
            "stun-report r/lu_table2 --out k/lu_table2",
        ],
        "",
    )


def test_after_a_mistake_there_is_nothing_to_report(tmp_path: Path) -> None:
    stand_in(tmp_path, "stun", "exit 2")
    stand_in(tmp_path, "stun-report", "exit 0")
    code, calls, _ = reproduced(tmp_path, "lu_table2", "sed=1")
    assert (code, len(calls)) == (2, 1)


def test_a_report_that_failed_is_no_success(tmp_path: Path) -> None:
    stand_in(tmp_path, "stun", "exit 0")
    stand_in(tmp_path, "stun-report", "exit 2")
    assert reproduced(tmp_path, "lu_table2")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], "]"), (["lu_tabel2", "seed=1"], "]; there is no pack lu_tabel2"), (["toy"], "pack toy")],
)
def test_without_a_pack_that_there_is_all_are_listed(tmp_path: Path, arguments: list[str], told: str) -> None:
    stand_in(tmp_path, "stun", "")
    stand_in(tmp_path, "stun-report", "")
    code, calls, said = reproduced(tmp_path, *arguments)
    usage, packs, _ = said.splitlines()
    assert (code, calls) == (2, [])
    assert usage.startswith("usage: scripts/reproduce.sh PACK [KEY=VALUE ...]")
    assert usage.endswith(told)
    assert packs == f"packs: {' '.join(PACKS)}"


def test_all_toy_versions_go_on_past_one_that_fails_and_name_it(tmp_path: Path) -> None:
    stand_in(tmp_path, "stun", 'case "$*" in *toy/lu_table2*) exit 1;; esac')
    stand_in(tmp_path, "stun-report", 'case "$*" in *toy/owl_lambda_m*) exit 2;; esac')
    code, calls, said = reproduced(tmp_path, "toy/all", "eval.limit=2")
    assert (code, said) == (1, "failed: toy/lu_table2 toy/owl_lambda_m\n")
    assert [call.split()[2] for call in calls[::2]] == [f"experiment={toy}" for toy in TOYS]
    assert all("hydra/launcher=joblib eval.limit=2" in call for call in calls[::2])
    stand_in(tmp_path, "stun", "")
    stand_in(tmp_path, "stun-report", "")
    assert reproduced(tmp_path, "toy/all")[0] == 0
