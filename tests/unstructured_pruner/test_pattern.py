"""Patterns are n:m with 0 < n < m, or none at all; whatever else is written is a mistake with its setting named."""

import pytest

from stun_exp.cli.check import check
from stun_exp.cli.main import CONF
from stun_exp.config.build import ConfigError
from stun_exp.unstructured_pruner.pattern import check_width, parsed


def test_patterns_are_read() -> None:
    assert [parsed(text) for text in ("unstructured", "2:4", "4:8", "1:4", "12:16")] == [
        None,
        (2, 4),
        (4, 8),
        (1, 4),
        (12, 16),
    ]


@pytest.mark.parametrize(
    "text", ["", "2", "2:4:8", "4:2", "4:4", "0:4", "-1:4", "2 :4", "2:4 ", "2.0:4", "Unstructured"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be unstructured, or n:m with 0 < n < m such as 2:4"):
        parsed(text)


@pytest.mark.parametrize(
    ("overrides", "mistake"),
    [
        (
            ["unstructured_pruner.pattern=half"],
            "unstructured_pruner.pattern=half: must be unstructured, or n:m with 0 < n < m such as 2:4",
        ),
        (
            ["unstructured_pruner=moe_pruner", "unstructured_pruner.pattern=4:4"],
            "unstructured_pruner.pattern='4:4': must be unstructured, or n:m with 0 < n < m such as 2:4",
        ),
        (
            # What a file's `pattern: 2:4` becomes: two minutes and four seconds.
            ["unstructured_pruner.pattern=124"],
            "unstructured_pruner.pattern=124: must be text; "
            "YAML reads n:m as minutes and seconds unless it is in quotes",
        ),
        (
            ["unstructured_pruner.group=layer", "unstructured_pruner.pattern=2:4"],
            "unstructured_pruner: pattern=2:4 compares neighbours of a row with one another, so group=layer has no "
            "effect; pass group=row or group=matrix, which are the same there, or pattern=unstructured",
        ),
        (
            ["unstructured_pruner.group=rows"],
            "unstructured_pruner.group=rows: must be 'row', 'cumulative', 'matrix' or 'layer'; did you mean row?",
        ),
        (["unstructured_pruner.pattern=null"], "unstructured_pruner.pattern=null: must be text"),
    ],
)
def test_a_mistake_names_the_setting(overrides: list[str], mistake: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(overrides, CONF)
    assert error.value.mistakes == (mistake,)


def test_groups_larger_than_a_matrix_are_refused_beside_a_pattern() -> None:
    """Those are asked for; `row` and `matrix` are what some pruner has by default."""
    for group in ("row", "matrix"):
        assert check(
            [
                "unstructured_pruner=magnitude,wanda",
                "unstructured_pruner.pattern=2:4",
                f"unstructured_pruner.group={group}",
                "--multirun",
            ],
            CONF,
        )
    for group in ("cumulative", "layer"):
        with pytest.raises(ConfigError, match=rf"pattern=4:8 .* group={group} has no effect; pass group=row"):
            check(["unstructured_pruner.pattern=4:8", f"unstructured_pruner.group={group}"], CONF)


def test_a_width_that_the_pattern_does_not_divide_names_matrix_and_width() -> None:
    check_width("2:4", 12, "q_proj")
    check_width("unstructured", 13, "q_proj")
    with pytest.raises(ValueError, match=r"pattern=4:8: 8 neighbours do not divide the 12 inputs of q_proj; choose"):
        check_width("4:8", 12, "q_proj")
