"""Each place in the settings takes the components that were made for it, and says what others lack."""

from typing import Any, ClassVar, Protocol

import pytest

from stun_exp.cli.check import check
from stun_exp.cli.main import CONF
from stun_exp.config.build import ConfigError
from stun_exp.config.component import Component
from stun_exp.config.settings import Settings
from stun_exp.config.slots import kinds_of, lacking, members
from stun_exp.state.cache import NoCache


class Kind(Protocol):
    size: int

    @property
    def ready(self) -> bool: ...

    def work(self) -> None: ...


def test_every_component_of_a_run_is_of_a_kind() -> None:
    places = {file.parent.name for file in CONF.glob("*/*.yaml")} & Settings.model_fields.keys()
    assert kinds_of(Settings).keys() == places
    assert all(members(kind) for kind in kinds_of(Settings).values())


@pytest.mark.parametrize("place", kinds_of(Settings))
@pytest.mark.parametrize("target", ["stun_exp.state.cache.NoCache", "stun_exp.tracker.none.NoTracker"])
def test_a_component_made_for_another_place_is_told(place: str, target: str) -> None:
    own = {"stun_exp.state.cache.NoCache": "cache", "stun_exp.tracker.none.NoTracker": "tracker"}[target]
    if place == own:
        return
    with pytest.raises(ConfigError) as error:
        check([f"{place}._target_={target}"], CONF)
    (said,) = [line for line in error.value.mistakes if "_target_" in line]
    assert said.startswith(f"{place}._target_={target}: has no ")
    assert f"; it is for {own}; {place} needs what stun_exp." in said


def test_what_a_component_has_may_be_a_setting_a_constant_or_a_property() -> None:
    class One(Component):
        size: int
        ready: ClassVar[bool] = True

        def work(self) -> None: ...

    class Other(One):
        size: ClassVar[int] = 1  # type: ignore[misc]

    assert lacking(One, Kind) == lacking(Other, Kind) == []


def test_a_setting_is_no_method_and_what_is_left_to_subclasses_is_lacking() -> None:
    from stun_exp.unstructured_pruner.wanda import Wanda

    class Setting(Component):
        size: int
        ready: bool
        work: int

    assert lacking(Setting, Kind) == ["work"]
    base: Any = Wanda.__mro__[1]
    assert "saliency" in lacking(base, kinds_of(Settings)["unstructured_pruner"])
    assert lacking(NoCache, kinds_of(Settings)["cache"]) == []
