"""Which runs are one point, and its figures."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest

from stun_exp.report.data.points import points
from stun_exp.report.data.run_settings import shown_settings

Make = Callable[..., dict[str, Any]]
KEY = "arc/acc,none"


def test_seeds_are_one_point_and_a_swept_setting_is_another(make_report: Make) -> None:
    reports = [
        make_report(seed=seed, **{"expert_pruner.lambda2": value, "tracker": {"run": seed}})
        for value in (0.1, 0.0)
        for seed in (1, 0)
    ]
    found = points(reports)
    assert [(point.label, point.places) for point in found] == [
        ("STUN (OWL) (lambda2=0.0)", (3, 2)),
        ("STUN (OWL) (lambda2=0.1)", (1, 0)),
    ]
    assert [report["seed"] for report in found[0].reports] == [0, 1]


def test_a_mean_with_its_errors_by_hand(make_report: Make) -> None:
    """0.6, 0.5, 0.7: sd 0.1. More seeds do not make the error over the items, which all seeds share, any smaller."""
    (point,) = points([make_report(accuracy=value, seed=seed) for seed, value in enumerate([0.6, 0.5, 0.7])])
    measured = point.measured(KEY)
    assert measured is not None
    assert measured.value == pytest.approx(0.6)
    assert measured.error == pytest.approx(0.1 / sqrt(3))
    assert measured.noise == pytest.approx(sqrt(0.1**2 / 3 + 0.025**2))


def test_one_seed_has_the_benchmark_s_own_error(make_report: Make) -> None:
    (point,) = points([make_report(accuracy=0.5, perplexity=2.0)])
    assert point.measured(KEY) == (0.5, 0.025, 0.025)
    assert point.measured("text/byte_perplexity,none") == (2.0, None, None)
    assert point.measured("text/other,none") is None


def test_what_differs_between_methods_has_no_column(make_report: Make) -> None:
    """The method's name stands for its settings; only what differs under one name has to be said."""
    stun = make_report("STUN")
    wanda = make_report("Wanda", expert_pruner={"_target_": "stun_exp.expert_pruner.none.KeepAll"})
    assert shown_settings([stun, wanda]) == {}
    other = make_report("STUN", **{"expert_pruner.lambda2": 1.0})
    assert shown_settings([stun, wanda, other]) == {"expert_pruner.lambda2": "lambda2"}
    found = points([stun, wanda, other])
    assert [point.settings for point in found] == [{"lambda2": "0.0"}, {"lambda2": "1.0"}, {}]


def test_sparsity_and_expert_ratio_tell_points_apart_without_a_column_of_their_own(make_report: Make) -> None:
    reports = [make_report(sparsity=s, **{"expert_pruner.ratio": r}) for s in (0.65, 0.4) for r in (0.0, 0.1)]
    found = points(reports)
    assert [(point.sparsity, point.ratio) for point in found] == [(0.4, 0.0), (0.4, 0.1), (0.65, 0.0), (0.65, 0.1)]
    assert all(point.settings == {} for point in found)


def test_a_component_s_own_seed_follows_the_run_s(make_report: Make) -> None:
    """expert_pruner=random has the run's seed for its own: its seeds are one point all the same."""
    reports = [make_report(seed=seed, **{"expert_pruner.seed": seed}) for seed in (0, 1)]
    assert len(points(reports)) == 1
    assert len(points([make_report(seed=0, **{"expert_pruner.seed": seed}) for seed in (0, 1)])) == 2


def test_numbers_come_by_size_and_unpruned_comes_first(make_report: Make) -> None:
    """10 after 9, which letters would turn round."""
    reports = [make_report(**{"calibration.num_sequences": number}) for number in (10, 9)]
    unpruned = make_report("whole", sparsity=0.0) | {"experts": {"ratio": 0.0}}
    assert [point.label for point in points([*reports, unpruned])] == [
        "whole",
        "STUN (OWL) (num_sequences=9)",
        "STUN (OWL) (num_sequences=10)",
    ]


def test_the_baseline_is_a_point_once_and_only_if_no_run_is_unpruned(make_report: Make) -> None:
    reports = [make_report("a", baseline=0.9), make_report("b", baseline=0.9)]
    found = points(reports)
    assert [point.name for point in found] == ["unpruned", "a", "b"]
    assert found[0].measured(KEY) == (0.9, 0.01, 0.01)
    unpruned = make_report("whole", sparsity=0.0) | {"experts": {"ratio": 0.0}}
    assert [point.name for point in points([*reports, unpruned])] == ["whole", "a", "b"]


@pytest.mark.parametrize("done", [{"recovery": {"steps": 1}}, {"skipping": {"evaluation": 0.1}}])
def test_a_model_that_was_trained_or_skips_is_not_unpruned(make_report: Make, done: dict[str, Any]) -> None:
    (point,) = points([make_report(sparsity=0.0) | {"experts": {"ratio": 0.0}} | done])
    assert not point.is_unpruned


def test_the_same_run_twice_is_refused(make_report: Make) -> None:
    with pytest.raises(ValueError, match="two runs are called 'STUN \\(OWL\\)', with equal settings and seed 0"):
        points([make_report(), make_report()])
