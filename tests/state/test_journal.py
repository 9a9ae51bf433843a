"""Records come back as they were written, those cut off are dropped, and those of another run are refused."""

import errno
import math
import os
from pathlib import Path
from typing import TypeVar

import pytest

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.moe.plan import LayerPlan, Plan
from stun_exp.pipeline.allocate import Allocated
from stun_exp.pipeline.recover import Recovered
from stun_exp.state.artifacts import JOURNAL
from stun_exp.state.costs import StageCost
from stun_exp.state.journal import Journal

T = TypeVar("T")
RUN = {"sparsity": 0.4, "seed": 0}
PLAN = Plan(
    [LayerPlan(1, 4, [[0, 2], [3]], [0, 3], [[0.1 + 0.2, 0.7], [1.0]], True, {"loss": 1e-300, "of": [1, None]})],
    ["a warning"],
    {"merges.json": {"1": [0.1]}},
)
RATIOS = Allocated([LayerRatios(0.1 + 0.2, {0: 1 / 3, 11: 0.0}, None), LayerRatios(0.5, {}, math.inf)], ["w"])


STAGES = {Plan: "experts", Allocated: "allocate"}


def add(journal: Journal, value: Plan | Allocated, passes: float = 0.0) -> None:
    journal.add(STAGES[type(value)], "x", value, StageCost(1.0, 2.0, forward_passes=passes))


def found(journal: Journal, kind: type[T]) -> T | None:
    recorded = journal.find(STAGES[kind], "x", kind)
    return recorded and recorded.value


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    """To the last bit of every number: what goes on from them must not differ. JSON makes text of numbers for keys."""
    journal = Journal(tmp_path, RUN, anew=False)
    add(journal, PLAN, 1.0)
    add(journal, RATIOS, 0.5)
    again = Journal(tmp_path, RUN, anew=False)
    assert found(again, Plan) == PLAN
    assert found(again, Allocated) == RATIOS
    assert again.find("recover", "x", Recovered) is None


def test_a_record_says_what_it_cost(tmp_path: Path) -> None:
    add(Journal(tmp_path, RUN, anew=False), PLAN, 2.0)
    recorded = Journal(tmp_path, RUN, anew=False).find("experts", "x", Plan)
    assert recorded is not None
    assert recorded.cost == StageCost(1.0, 2.0, forward_passes=2.0)


def test_a_record_of_another_fingerprint_is_none(tmp_path: Path) -> None:
    """Of a stage whose code has changed since: what is of the old code stays in the file, and is not taken."""
    journal = Journal(tmp_path, RUN, anew=False)
    journal.add("experts", "old", PLAN, StageCost())
    again = Journal(tmp_path, RUN, anew=False)
    assert again.find("experts", "new", Plan) is None
    assert again.find("experts", "old", Plan) is not None


def test_a_run_of_another_version_differs_in_one_readable_line(tmp_path: Path) -> None:
    """It named the code of two hundred modules."""
    Journal(tmp_path, RUN | {f"code of {number}": "a" for number in range(200)}, anew=False)
    with pytest.raises(ValueError, match=r"code of 0: a -> None; .*; and 192 more; go on as it was begun") as error:
        Journal(tmp_path, RUN, anew=False)
    assert "code of 9" not in str(error.value)


def test_changed_code_is_named_once(tmp_path: Path) -> None:
    assert Journal(tmp_path, RUN, anew=False).note_code({"wanda": "a", "torch": "1"}) == []
    assert Journal(tmp_path, RUN, anew=False).note_code({"wanda": "b", "torch": "1"}) == ["wanda"]
    assert Journal(tmp_path, RUN, anew=False).note_code({"wanda": "b", "torch": "1"}) == []


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_line_that_was_cut_off_is_dropped_and_written_over(tmp_path: Path, kept: int) -> None:
    """The trap: the next record behind half a line makes one damaged line of two."""
    journal = Journal(tmp_path, RUN, anew=False)
    add(journal, PLAN)
    first = (tmp_path / JOURNAL).read_bytes()
    add(journal, RATIOS)
    second = (tmp_path / JOURNAL).read_bytes().removeprefix(first)
    (tmp_path / JOURNAL).write_bytes(first + second[:kept])
    again = Journal(tmp_path, RUN, anew=False)
    assert found(again, Plan) == PLAN
    assert found(again, Allocated) is None
    add(again, RATIOS)
    assert found(Journal(tmp_path, RUN, anew=False), Allocated) == RATIOS


def test_a_journal_whose_first_line_was_cut_off_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b'{"sha256": "0a3')
    Journal(tmp_path, RUN, anew=False)
    Journal(tmp_path, RUN, anew=False)


def test_a_record_without_room_is_told_and_the_rest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, RUN, anew=False)
    with monkeypatch.context() as full:

        def no_room(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(os, "fsync", no_room)
        with pytest.raises(OSError, match=r"journal\.jsonl: could not be written \(No space left on device\)"):
            add(journal, PLAN)
    add(journal, PLAN)
    assert len((tmp_path / JOURNAL).read_text().splitlines()) == 3


def test_a_run_that_differs_is_refused_and_the_differences_named(tmp_path: Path) -> None:
    Journal(tmp_path, RUN, anew=False)
    other = {"sparsity": 0.5, "seed": 0, "new": "x"}
    with pytest.raises(ValueError, match=r"differs: sparsity: 0\.4 -> 0\.5; new: None -> x; go on as it was begun"):
        Journal(tmp_path, other, anew=False)
    add(Journal(tmp_path, other, anew=True), PLAN)
    assert found(Journal(tmp_path, other, anew=False), Plan) == PLAN
    assert found(Journal(tmp_path, other, anew=True), Plan) is None


# --- what a journal is worth


def test_a_journal_that_was_edited_is_not_trusted(tmp_path: Path) -> None:
    """To other valid values: the plan would have been carried out."""
    journal = Journal(tmp_path, RUN, anew=False)
    add(journal, PLAN)
    add(journal, RATIOS)
    text = (tmp_path / JOURNAL).read_text()
    (tmp_path / JOURNAL).write_text(text.replace("[0, 3]", "[2, 3]", 1))
    with pytest.raises(ValueError, match=r"journal\.jsonl, line 3: damaged; pass resume=restart"):
        Journal(tmp_path, RUN, anew=False)
    assert found(Journal(tmp_path, RUN, anew=True), Plan) is None


def test_a_line_that_is_missing_or_moved_is_noticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RUN, anew=False)
    add(journal, PLAN)
    add(journal, RATIOS)
    lines = (tmp_path / JOURNAL).read_text().splitlines(keepends=True)
    for changed in (lines[:2] + lines[3:], [*lines[:2], lines[3], lines[2]], lines + lines[3:]):
        (tmp_path / JOURNAL).write_text("".join(changed))
        with pytest.raises(ValueError, match=r"journal\.jsonl, line \d: damaged"):
            Journal(tmp_path, RUN, anew=False)


@pytest.mark.parametrize("content", ["mine\n", "mine", '{"made_of": {}}\n', "[]\n", "\xff\xfe\n"])
def test_a_file_that_is_no_journal_is_kept(tmp_path: Path, content: str) -> None:
    """Also where a run begins anew, which puts its own in the journal's place."""
    (tmp_path / JOURNAL).write_text(content, encoding="latin-1")
    for anew in (False, True):
        with pytest.raises(ValueError, match=r"is no journal of a run as this version writes it"):
            Journal(tmp_path, RUN, anew)
    assert (tmp_path / JOURNAL).read_text(encoding="latin-1") == content


def test_files_are_named_before_they_are_written(tmp_path: Path) -> None:
    """And stay a run's own when it begins anew, as long as they are there."""
    journal = Journal(tmp_path, RUN, anew=False, names=["a"])
    journal.claim(["b"])
    (tmp_path / "b").write_text("")
    assert Journal(tmp_path, RUN, anew=False).own == {"a", "b"}
    assert Journal(tmp_path, RUN, anew=True, names=["c"]).own == {"b", "c"}
    (tmp_path / "theirs").write_text("")
    with pytest.raises(ValueError, match=r"theirs: the run is to write there, and no run has written that file"):
        Journal(tmp_path, RUN, anew=False).claim(["theirs"])
