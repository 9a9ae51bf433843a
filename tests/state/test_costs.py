"""What a stage cost."""

import time

import pytest
import torch

from stun_exp.state.costs import Costs, StageCost

CPU = torch.device("cpu")


def test_a_stage_is_timed_and_its_memory_is_its_own() -> None:
    """The peak falls again after a large stage: a process-wide peak would charge it to every later one."""
    found = Costs(CPU)
    with found.measured("large"):
        ballast = torch.ones(64 * 2**20)  # 256 MiB, touched
        time.sleep(0.02)
        del ballast
    with found.measured("small") as cost:
        cost.forward_passes = 2.0
    cost_of = found.json()
    assert list(cost_of) == ["large", "small"]
    assert cost_of["large"]["wall_seconds"] == cost_of["large"]["charged_seconds"] >= 0.02
    assert cost_of["large"]["peak_host_gib"] - cost_of["small"]["peak_host_gib"] > 0.2
    assert cost_of["small"]["forward_passes"] == 2.0
    assert cost_of["small"]["peak_device_gib"] is None


def test_a_failed_stage_is_not_in_the_report() -> None:
    found = Costs(CPU)
    with pytest.raises(ValueError, match="no"), found.measured("failed"):
        raise ValueError("no")
    assert found.json() == {}


def test_what_was_cached_is_charged_and_takes_no_time() -> None:
    """The trap: a method whose statistics another run had gathered looked as fast as one that needs none."""
    with Costs(CPU).measured("experts") as cost:
        cost.charge(StageCost(wall_seconds=100.0, charged_seconds=7.0, forward_passes=2.0))
    assert cost.charged_seconds - cost.wall_seconds == pytest.approx(7.0)
    assert (cost.wall_seconds < 5, cost.forward_passes) == (True, 2.0)
