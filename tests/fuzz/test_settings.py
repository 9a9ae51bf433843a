"""What a setting is given is taken as it stands, or a line names the setting before anything is pruned."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzz_mutants import NUMBERS, OTHERS, STRINGS
from fuzz_world import BASE, CASES, SEED, World, built, complaint, composed, everything, pruned, stun
from omegaconf import DictConfig, ListConfig, OmegaConf

from stun_exp.cli.main import CONF
from stun_exp.config.settings import Settings

GROUPS = {
    name: sorted(file.stem for file in (CONF / name).glob("*.yaml"))
    for name in Settings.model_fields
    if (CONF / name).is_dir()
}
SLOW = {"eval", "export", "tracker", "c4"}
"""Groups, and one choice, whose parts take seconds or a network: their settings are checked, and nothing is run."""


def settings(node: Any, path: str = "") -> Iterator[str]:
    """The dotted name of every setting in a config, mappings included."""
    inside = node.keys() if isinstance(node, DictConfig) else range(len(node)) if isinstance(node, ListConfig) else ()
    for key in inside:
        if path or key != "hydra":
            name = f"{path}.{key}" if path else str(key)
            yield name
            if not OmegaConf.is_missing(node, key):
                yield from settings(node[key], name)


def a_setting(world: World, at: Path, random: Random) -> str:
    """One setting of a component given something else, or a component in the place of another."""
    group = random.choice(sorted(GROUPS))
    choice = random.choice(GROUPS[group])
    overrides = [text for text in BASE if not text.startswith(f"{group}=")] + [f"{group}={choice}"]
    cfg = composed(overrides)
    known = world.values(world.home) | {"model.parameters": None}
    names = list(settings(cfg))
    name = random.choice(
        [name for name in names if name.split(".")[0] == group or (name not in GROUPS and "." not in name)]
    )
    value = random.choice(random.choice((OTHERS, NUMBERS, STRINGS)))
    if random.random() < 0.05:
        name, value = group, cfg[random.choice(sorted(GROUPS))]
    what = f"{group}={choice}: {name}={value!r:.60}"
    before = everything(world.home)
    if group == "calibration" and choice != "local":
        del known["calibration.path"]
    command = built if {group, choice} & SLOW else stun
    ended = command(at / "out", known | {name: value}, overrides)
    root = name.split(".")[0]
    as_before = _AS_IT_IS.get((group, choice))
    if ended.code and not as_before:
        as_before = _AS_IT_IS[group, choice] = command(at / "before", known, overrides).said or "nothing"
    if ended.said == as_before:
        return ""  # this choice needs more than one setting to go with the others
    if not ended.code and not _of_a_kind(cfg, name, value):
        return f"{what}\n  taken, though of another kind"
    why = complaint(ended, before, everything(world.home), (f"{root}.", f"{root}=", f"{root}:", name))
    if not why and ended.code and pruned(at / "out"):
        why = "refused after the weights were begun"
    return f"{what}\n  {why}\n  {ended.said}" if why else ""


_AS_IT_IS: dict[tuple[str, str], str] = {}
"""What is said of choices that were left as they are."""


def _of_a_kind(cfg: DictConfig, name: str, value: Any) -> bool:
    """Whether a value is of a kind with what the config has there; what may be left out may be of any."""
    was = OmegaConf.select(cfg, name, throw_on_missing=False)
    kinds = (bool, (int, float), str, (list, ListConfig), (dict, DictConfig))
    was_kind, is_kind = (next((kind for kind in kinds if isinstance(one, kind)), None) for one in (was, value))
    return was is None or was_kind == is_kind


CATEGORIES = {"settings": a_setting}


def case(world: World, at: Path, category: str, number: int) -> str:
    return CATEGORIES[category](world, at, Random(f"{SEED} {category} {number}"))


@pytest.mark.parametrize("number", range(CASES * 5))
def test_a_wrong_setting(world: World, tmp_path: Path, number: int) -> None:
    assert case(world, tmp_path, "settings", number) == ""
