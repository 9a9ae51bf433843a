"""Off is a component: the checkpoint stays as pruning left it."""

from pathlib import Path

from stun_exp.recovery.none import NoRecovery


def test_nothing_is_written(mixtral_copy: Path) -> None:
    before = {file.name: file.read_bytes() for file in mixtral_copy.iterdir()}
    NoRecovery().recover(mixtral_copy)
    assert {file.name: file.read_bytes() for file in mixtral_copy.iterdir()} == before
