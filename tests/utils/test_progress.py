"""How libraries are loaded."""

import gc

from stun_exp.utils.progress import loading


def test_what_libraries_are_made_of_is_frozen_once() -> None:
    """What is there at a later run's start may be an earlier run's garbage."""
    before = gc.get_freeze_count()
    try:
        with loading():
            assert gc.isenabled() == bool(before)
        frozen = gc.get_freeze_count()
        assert frozen > 0
        later = [[number] for number in range(100_000)]  # which would be frozen now, and outweigh what is gone
        with loading():
            assert gc.isenabled()
        assert gc.get_freeze_count() <= frozen  # less where some of it is gone by now
        assert len(later) == 100_000
    finally:
        gc.unfreeze()
