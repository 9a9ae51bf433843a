"""Names that are cut are still as different as they were."""

from stun_exp.utils.names import short_digest, shortened


def test_a_short_name_stays_and_a_cut_one_ends_in_its_hash() -> None:
    assert shortened("x" * 20, 20) == "x" * 20
    assert shortened("x" * 21, 20) == f"{'x' * 11}-{short_digest('x' * 21)}"
    assert shortened("x" * 21, 20) != shortened("x" * 22, 20)


def test_it_counts_bytes_and_cuts_no_character_in_two() -> None:
    """é is two bytes, of which 11 would leave the first alone."""
    cut = shortened("é" * 15, 20)
    assert len(cut.encode()) <= 20
    assert "\ufffd" not in cut
    assert cut == f"{'é' * 5}-{short_digest('é' * 15)}"
