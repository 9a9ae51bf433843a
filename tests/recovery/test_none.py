"""Off is a component: the checkpoint stays as pruning left it, and no text is drawn."""

from collections.abc import Callable
from typing import Any

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.recovery.none import NoRecovery


def test_nothing_is_written(mixtral: Checkpoint, prune: Callable[..., Any]) -> None:
    pruned = prune(mixtral)
    before = {file.name: file.read_bytes() for file in pruned.path.iterdir()}
    assert before
    assert NoRecovery().recover(pruned) is None  # type: ignore[func-returns-value]
    assert NoRecovery().num_sequences == 0
    assert {file.name: file.read_bytes() for file in pruned.path.iterdir()} == before
    assert not pruned.state.parent.exists()
