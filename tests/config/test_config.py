"""A config with mistakes is answered with all of them, each with its value, its limit and the way out."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from stun_exp.cli.check import check
from stun_exp.cli.main import CONF
from stun_exp.config.build import ConfigError, build
from stun_exp.config.component import Component
from stun_exp.config.errors import did_you_mean
from stun_exp.config.settings import Settings

ONE_MISTAKE = {
    "sparsty=0.4": "sparsty: no such setting; did you mean sparsity?",
    "ratio=0.3": "ratio: no such setting; did you mean expert_pruner.ratio?",
    "expert_pruner.ratoi=0.3": "expert_pruner.ratoi: no such setting; did you mean expert_pruner.ratio?",
    "expert_pruner.foo=3": "expert_pruner.foo: no such setting; there is layers, method, ratio, top",
    "recovery.foo=3": "recovery.foo: no such setting; there is none here",
    "eval.limits.a=3": "eval.limits.a: no such setting; +eval.limits.a=VALUE to add it?",
    "+seeds=1": "seeds: no such setting; did you mean seed?",
    "expert_pruner=ctu": "expert_pruner=ctu: no such choice; did you mean cut? (choices: cut, none)",
    "recovery=null": "recovery=null: no such choice (choices: none)",
    "experiment=uncut": (
        "experiment=uncut: no such choice; did you mean demo/uncut? "
        "(choices: globbed, grid, swapped, wrong, demo/dense, demo/uncut)"
    ),
    "seed=abc": "seed=abc: must be a whole number",
    "seed='5'": "seed='5': must be a whole number",
    "seed=1.5": "seed=1.5: must be a whole number",
    "seed=true": "seed=true: must be a whole number",
    "seed=-1": "seed=-1: must be at least 0",
    "save=1": "save=1: must be true or false",
    "name=7": "name=7: must be text; pass \"name='7'\"",
    "sparsity=1.0": "sparsity=1.0: must be at least 0 and below 1",
    "sparsity=nan": "sparsity=nan: must be a finite number or a list [A,B]",
    "sparsity_scope=expert": ("sparsity_scope=expert: must be 'experts', 'decoder' or 'model'; did you mean experts?"),
    "expert_pruner.top=b": "expert_pruner.top=b: must be a whole number or 'auto'",
    "expert_pruner.layers=[1,a]": "expert_pruner.layers.1=a: must be a whole number",
    "expert_pruner.layers=[]": "expert_pruner.layers=[]: no layer to cut; name one",
    "unstructured_pruner.first=3": "unstructured_pruner: first=3 is after last=2; swap them",
    "eval.benchmarks.a.shots=x": "eval.benchmarks.a.shots=x: must be a whole number",
    "recovery._target_=parts.Of": "recovery._target_=parts.Of: no such component; did you mean Off?",
    "recovery._target_=prts.Off": (
        "recovery._target_=prts.Off: cannot be imported (No module named 'prts'); pass MODULE.CLASS"
    ),
    "recovery._target_=parts.Lone": (
        "recovery._target_=parts.Lone: has no num_sequences, recover; recovery needs what "
        "stun_exp.recovery.protocol.Recovery has, pass recovery=NAME"
    ),
    "eval.benchmarks.a._target_=parts.Lone": "eval.benchmarks.a._target_=parts.Lone: must be a component Task",
    "name=${nme}": "name: Interpolation key 'nme' not found",
    "~tracker": "tracker: required; pass tracker=VALUE",
    "seed": "seed: is no setting; write KEY=VALUE",
    "name=[1": (
        "name=[1: cannot be read, no viable alternative at input '[1'; "
        "put quotes around a text with odd characters, \"KEY='A=B'\""
    ),
    "seed=1,2": "seed=1,2: several values; pass -m to sweep over them, or write a list as seed=[A,B]",
    "experiment=grid": "sparsity=0.3,0.4: the config is a sweep; pass -m to run it, or one value for each of these",
    "sparsity=0.1": (
        "sparsity=0.1: below expert_pruner.ratio=0.25, which alone removes more; pass sparsity=0.25 or more, "
        "or expert_pruner.ratio=0.1 or less"
    ),
    "unstructured_pruner=none": (
        "sparsity=0.4: with unstructured_pruner=none it must equal expert_pruner.ratio=0.25 to 0.0005; pass "
        "sparsity=0.25 or expert_pruner.ratio=0.4, or choose an unstructured_pruner"
    ),
}


@pytest.mark.parametrize("argument", ONE_MISTAKE)
def test_a_mistake_names_setting_value_limit_and_way_out(mistakes: Callable[..., list[str]], argument: str) -> None:
    assert mistakes(argument) == [ONE_MISTAKE[argument]]


def test_a_required_setting_says_what_to_pass(conf: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model.path: required; pass model.path=DIR$"):
        check([], conf)


def test_no_pruner_at_all_needs_no_sparsity(conf: Path) -> None:
    off = ["unstructured_pruner=none", "expert_pruner=none", "model.path=x"]
    assert check([*off, "sparsity=0"], conf)
    with pytest.raises(ConfigError, match=r"sparsity=0.4: .* prune nothing; pass sparsity=0, or choose"):
        check(off, conf)


def test_whole_experts_alone_may_miss_the_sparsity_by_a_little(conf: Path) -> None:
    """A plan that is read back removes 13 of 64 experts: 0.203125, which nobody types."""
    argv = ["unstructured_pruner=none", "expert_pruner.ratio=0.203125", "model.path=x"]
    for sparsity in ("0.203", "0.2035", "0.203625", "0.202625"):
        assert check([*argv, f"sparsity={sparsity}"], conf)
    for sparsity in ("0.2025", "0.2037"):
        with pytest.raises(ConfigError, match=rf"sparsity={sparsity}: .*ratio=0.203125 to 0.0005; pass"):
            check([*argv, f"sparsity={sparsity}"], conf)


def test_a_component_may_take_a_setting_from_elsewhere(conf: Path, mistakes: Callable[..., list[str]]) -> None:
    """`seed: ${seed}` in a component's YAML: resolved from the whole config, swept, overridden and checked."""
    argv = ["calibration=seeded", "model.path=x"]
    assert check([*argv, "seed=3"], conf)
    assert check(["-m", *argv, "seed=0,1", "expert_pruner.top=2,auto"], conf)
    assert check([*argv, "calibration.seed=7"], conf)
    assert mistakes("calibration=seeded", "calibration.seed=-7") == ["calibration.seed=-7: must be at least 0"]
    assert mistakes("calibration=seeded", "expert_pruner=none") == [
        "calibration.top: Interpolation key 'expert_pruner.top' not found"
    ]
    nodes = settings_nodes() | {"calibration": {"_target_": "parts.Task", "shots": "${seed}"}, "seed": 3}
    built: Any = build(OmegaConf.create(nodes))
    assert built.calibration.shots == 3


def test_all_mistakes_at_once(mistakes: Callable[..., list[str]]) -> None:
    # `expert_pruner=ctu` is checked on as `cut`, `seed=-1` does not hide what is wrong between other settings
    argv = ["expert_pruner=ctu", "expert_pruner.ratoi=1", "sparsty=1", "seed=-1", "save=1", "a=["]
    argv.append("sparsity=0.1")
    said = [line.partition(":")[0] for line in mistakes(*argv)]
    assert sorted(said) == sorted(
        ["a=[", "expert_pruner.ratoi", "expert_pruner=ctu", "save=1", "seed=-1", "sparsity=0.1", "sparsty"]
    )


def test_nothing_is_said_of_what_a_riddle_would_have_set(mistakes: Callable[..., list[str]]) -> None:
    # the experiment might have set everything but the typed seed, the pruner its own settings
    argv = ["experiment=xyz", "expert_pruner.foo=1", "sparsity=0.1", "seed=-1"]
    assert mistakes(*argv)[1:] == ["seed=-1: must be at least 0"]
    assert len(mistakes("expert_pruner=xyz", "expert_pruner.foo=1", "sparsity=0.1")) == 1


def settings_nodes() -> dict[str, Any]:
    """A composed config with every component off."""
    components = {group: {"_target_": "parts.Off"} for group in Settings.model_fields}
    components["model"] = {"_target_": "parts.Model", "path": "x"}
    plain = {"sparsity": 0, "sparsity_scope": "model", "seed": 0, "name": "n", "save": False, "dry_run": True}
    return components | plain | {"resume": "continue", "measure_damage": True}


def test_build_makes_components_all_the_way_down(conf: Path) -> None:
    nodes = settings_nodes()
    nodes["model"] = {"_target_": "parts.Model", "path": "x"}
    nodes["eval"] = {
        "_target_": "parts.Eval",
        "limits": {},
        "benchmarks": {"a": {"_target_": "parts.Task", "shots": 3}},
    }
    settings: Any = build(OmegaConf.create(nodes))
    assert settings.eval.benchmarks["a"].shots == 3
    assert settings.sparsity == 0.0
    with pytest.raises(ConfigError, match=r"model=\{\}: needs a choice, pass model=NAME"):
        build(OmegaConf.create({**nodes, "model": {}}))


def test_a_component_is_frozen_and_strict_but_takes_an_int_for_a_float_and_a_list_for_a_tuple() -> None:
    class Sample(Component):
        x: float
        n: int
        t: tuple[int, ...] | None

    sample = Sample(x=1, n=1, t=[1, 2])  # type: ignore[arg-type]
    assert (sample.x, sample.t) == (1.0, (1, 2))
    with pytest.raises(ValidationError, match="frozen"):
        sample.n = 2  # type: ignore[misc]
    wrong = [("x", "1"), ("x", True), ("n", 1.5), ("n", True), ("n", "1"), ("t", "12"), ("unknown", 1)]
    for name, value in wrong:
        with pytest.raises(ValidationError):
            Sample.model_validate({"x": 1.0, "n": 1, "t": None, name: value})


def test_did_you_mean_looks_in_the_same_place_first() -> None:
    assert did_you_mean("a.ratoi", ["a.ratio", "b.ratoi"]) == "a.ratio"
    assert did_you_mean("ratio", ["calibration", "a.ratio"]) == "a.ratio"
    assert did_you_mean("expert_prunr.ratio", ["expert_pruner.ratio", "x.y"]) == "expert_pruner.ratio"
    assert did_you_mean("a.foo", ["a.top", "a"]) == ""


def test_a_config_error_survives_the_way_back_from_a_launcher() -> None:
    assert pickle.loads(pickle.dumps(ConfigError(["a", "b"]))).mistakes == ("a", "b")


# What a choice cannot run without.
NEEDS = {
    "model=local": ["model.path=owner/name"],
    "calibration=local": ["calibration.path={text}"],
    "calibration=pairs": ["calibration.path={text}"],
    "calibration=math": ["calibration.path={text}"],
    "expert_pruner=from_plan": ["expert_pruner.path={plan}"],
    "unstructured_pruner=none": ["expert_pruner=none", "sparsity=0"],
}
CHOICES = sorted(
    file.relative_to(CONF).with_suffix("").as_posix()
    for file in CONF.glob("*/**/*.yaml")
    if file.relative_to(CONF).parts[0] not in ("hydra", "experiment")  # experiments: tests/test_packs.py
)
assert CHOICES


@pytest.mark.parametrize("choice", CHOICES)
def test_every_yaml_in_conf_builds(choice: str, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    layer = {"layer": 0, "num_experts": 4, "groups": [[0], [1], [2]], "kept": [0, 1, 2], "router": "0"}
    plan.write_text(json.dumps({"layers": [layer]}))
    (text := tmp_path / "text.jsonl").write_text("")
    argument = choice.replace("/", "=", 1)
    group, _, name = argument.partition("=")
    if group == "benchmark":
        assert check([f"+benchmark@eval.benchmarks.one_more={name}"], CONF)
    else:
        assert check([argument, *(needed.format(plan=plan, text=text) for needed in NEEDS.get(argument, []))], CONF)


NOT_THERE = {
    "model.path=/not/there": "no such folder, nor a hub repository (owner/name)",
    "model.path=there": "no such folder, nor a hub repository (owner/name)",
    "model.path=bundled:toy": (
        "no such bundled model; there are bundled:toy_moe, bundled:toy_arctic, bundled:toy_upcycled, bundled:toy_dense"
    ),
    "calibration.path=not/there.jsonl": "no such file",
    "expert_pruner.path=not/there.json": "no such file",
    "eval.benchmarks.toy_arc.include=not/there": (
        "no such folder; give the one of the task's YAML, bundled:toy, or null for lm-eval's"
    ),
}


def test_what_is_not_there_is_told_for_all_runs_at_once() -> None:
    """And not when the run begins that needs it."""
    choices = ["model=local", "calibration=local", "expert_pruner=from_plan"]
    model, text, plan, include = (wrong for wrong in NOT_THERE if wrong not in list(NOT_THERE)[1:3])
    with pytest.raises(ConfigError) as error:
        check([*choices, model, text, plan, include, "seed=-1"], CONF)
    assert sorted(error.value.mistakes) == sorted(
        [*(f"{wrong}: {NOT_THERE[wrong]}" for wrong in (model, text, plan, include)), "seed=-1: must be at least 0"]
    )
    with pytest.raises(ConfigError) as error:
        check(["-m", "model=local", "model.path=bundled:toy_moe,there,bundled:toy,owner/name"], CONF)
    assert list(error.value.mistakes) == [f"{wrong}: {NOT_THERE[wrong]}" for wrong in list(NOT_THERE)[1:3]]
