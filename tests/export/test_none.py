"""Without an export nothing is promised, ruled out or written."""

from collections.abc import Callable
from pathlib import Path

from stun_exp.export.none import NoExport
from stun_exp.export.protocol import Pruned


def test_everything_goes_and_nothing_changes(make_pruned: Callable[..., Pruned]) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    pruned = make_pruned("arctic", {1: [0, 2]})
    before = files(pruned.folder)
    assert before
    NoExport().check(pruned.source, 0.25, True)
    NoExport().check_plan(pruned.source, pruned.plan)
    assert NoExport().export(pruned) is None
    assert files(pruned.folder) == before
    assert not NoExport().keeps_checkpoint
