"""Which settings have a column."""

from collections.abc import Callable
from typing import Any

from stun_exp.report.data.run_settings import shown_settings

Make = Callable[..., dict[str, Any]]


def test_a_choice_stands_for_the_settings_that_it_brings(make_report: Make) -> None:
    """But not for one that was set beside it."""

    def calibrated(choice: str, path: str, number: int) -> dict[str, Any]:
        calibration = {"_target_": f"stun_exp.calibration.protocol.{choice}", "path": path, "num_sequences": number}
        return make_report(choices={"calibration": choice}, calibration=calibration)

    c4, maths = calibrated("c4", "a", 64), calibrated("maths", "b", 64)
    assert shown_settings([c4, maths]) == {"calibration": "calibration"}
    fewer = [calibrated("c4", "a", 8), calibrated("maths", "b", 8)]
    assert shown_settings([c4, maths, *fewer]) == {
        "calibration": "calibration",
        "calibration.num_sequences": "num_sequences",
    }


def test_settings_with_one_ending_keep_their_whole_names(make_report: Make) -> None:
    """Two settings that happen to change together are both shown."""
    recovery = [{"num_sequences": number} for number in (10, 20)]
    reports = [
        make_report(recovery=one, **{"calibration.num_sequences": number})
        for number, one in zip((1, 2), recovery, strict=True)
    ]
    assert set(shown_settings(reports).values()) == {"calibration.num_sequences", "recovery.num_sequences"}
