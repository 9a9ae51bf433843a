"""Records come back as they were written, those cut off are dropped, and those of another run are refused."""

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.calibration.protocol import CalibrationTokens
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.shards import Shard
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.plan import LayerPlan, Plan
from stun_exp.pipeline.diagnostics import Moments, Weights
from stun_exp.pipeline.layer_diagnostics import Seen
from stun_exp.pipeline.prune import PrunedLayer
from stun_exp.state.journal import JOURNAL, Allocated, FinishedLayer, Journal, Recovered, made_of
from stun_exp.state.ledger import Cost
from stun_exp.utils.files import digest_of

RUN = {"sparsity": 0.4, "seed": 0}
PLAN = Plan(
    [LayerPlan(1, 4, [[0, 2], [3]], [0, 3], [[0.1 + 0.2, 0.7], [1.0]], True, {"loss": 1e-300, "of": [1, None]})],
    ["a warning"],
    {"merges.json": {"1": [0.1]}},
)
RATIOS = Allocated([LayerRatios(0.1 + 0.2, {0: 1 / 3, 11: 0.0}, None), LayerRatios(0.5, {}, math.inf)], ["w"])


def layer(number: int, shard: Shard) -> FinishedLayer:
    weights = {"before": [Weights(Moments(3, 0.1, 0.2, math.inf, 0.4), 7)]}
    return FinishedLayer(number, shard, PrunedLayer(0.5, [3, 0], [1], ["w"]), Seen(weights, [{"error": 0.1}]))


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    """To the last bit of every number: what goes on from them must not differ. JSON makes text of numbers for keys."""
    journal = Journal(tmp_path, RUN, anew=False)
    journal.add("experts", PLAN, 1.0)
    journal.add("allocate", RATIOS, 0.5)
    again = Journal(tmp_path, RUN, anew=False)
    assert again.find("experts", Plan) == PLAN
    assert again.find("allocate", Allocated) == RATIOS
    assert again.find("recover", Recovered) is None


def test_what_is_taken_from_the_journal_is_charged_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RUN, anew=False)
    journal.add("experts", PLAN, 2.0)
    journal.add("allocate", RATIOS, 1.0)
    again = Journal(tmp_path, RUN, anew=False)
    again.find("experts", Plan)
    costs = {"experts": Cost(wall_seconds=1.0), "allocate": Cost(forward_passes=3.0)}
    again.charge(costs)
    assert costs["experts"].forward_passes == 2.0
    assert costs["experts"].wall_seconds > 1.0
    assert costs["allocate"] == Cost(forward_passes=3.0)  # it is done again, and measures itself


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_line_that_was_cut_off_is_dropped_and_written_over(tmp_path: Path, kept: int) -> None:
    """The trap: the next record behind half a line makes one damaged line of two."""
    journal = Journal(tmp_path, RUN, anew=False)
    journal.add("experts", PLAN)
    first = (tmp_path / JOURNAL).read_bytes()
    journal.add("allocate", RATIOS)
    second = (tmp_path / JOURNAL).read_bytes().removeprefix(first)
    (tmp_path / JOURNAL).write_bytes(first + second[:kept])
    again = Journal(tmp_path, RUN, anew=False)
    assert again.find("experts", Plan) == PLAN
    assert again.find("allocate", Allocated) is None
    again.add("allocate", RATIOS)
    assert Journal(tmp_path, RUN, anew=False).find("allocate", Allocated) == RATIOS


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
            journal.add("experts", PLAN)
    journal.add("experts", PLAN)
    assert len((tmp_path / JOURNAL).read_text().splitlines()) == 3


def test_a_run_that_differs_is_refused_and_the_differences_named(tmp_path: Path) -> None:
    Journal(tmp_path, RUN, anew=False)
    other = {"sparsity": 0.5, "seed": 0, "new": "x"}
    with pytest.raises(ValueError, match=r"differs: sparsity: 0\.4 -> 0\.5; new: None -> x; go on as it was begun"):
        Journal(tmp_path, other, anew=False)
    Journal(tmp_path, other, anew=True).add("experts", PLAN)
    assert Journal(tmp_path, other, anew=False).find("experts", Plan) == PLAN
    assert Journal(tmp_path, other, anew=True).find("experts", Plan) is None


# --- shards


@pytest.fixture
def written(mixtral: Checkpoint, tmp_path: Path) -> CheckpointWriter:
    writer = CheckpointWriter(mixtral, tmp_path / "checkpoint")
    for index in range(mixtral.num_layers):
        writer.write_layer(mixtral.read_layer(index))
    writer.finish()
    return writer


@pytest.fixture
def journal(written: CheckpointWriter, tmp_path: Path) -> Journal:
    """One in which the three layers are recorded."""
    journal = Journal(tmp_path, RUN, anew=False)
    for number in range(3):
        journal.add("prune", layer(number, written.shards[number]), 1 / 3)
    return Journal(tmp_path, RUN, anew=False)


def test_layers_that_lie_there_are_found(journal: Journal, written: CheckpointWriter) -> None:
    """What lies outside the layers is no layer: it is written again."""
    found = journal.found_in(written.path, pytest.fail)
    assert found.pruned == {number: layer(0, written.shards[0]).pruned for number in range(3)}
    assert found.seen == {number: layer(0, written.shards[0]).seen for number in range(3)}
    assert found.shards == {number: written.shards[number] for number in range(3)}
    assert found.recovery is None


def test_the_last_record_of_a_layer_counts(journal: Journal, written: CheckpointWriter, tmp_path: Path) -> None:
    """Of a layer that was written twice, with other weights the second time."""
    layer_1 = written.source.read_layer(1)
    layer_1.module.self_attn.q_proj.weight.zero_()
    shard = written.write_layer(layer_1)
    warnings: list[str] = []
    assert journal.found_in(written.path, warnings.append).shards.keys() == {0, 2}
    assert warnings == [
        f"{written.path}: layer 1 was finished, but the file is not as it was written; it is pruned again"
    ]
    journal.add("prune", layer(1, shard))
    assert Journal(tmp_path, RUN, anew=False).found_in(written.path, pytest.fail).shards[1] == shard


def test_after_a_recovery_all_shards_are_its_own_or_none(
    journal: Journal, written: CheckpointWriter, tmp_path: Path
) -> None:
    journal.add("recover", Recovered({"steps": 1}, written.shards))
    found = Journal(tmp_path, RUN, anew=False).found_in(written.path, pytest.fail)
    assert found.recovery is not None
    assert found.recovery.result == {"steps": 1}
    assert found.shards == written.shards  # that outside the layers too: it was trained
    (written.path / written.shards[3].name).unlink()
    found = Journal(tmp_path, RUN, anew=False).found_in(written.path, pytest.fail)
    assert found.recovery is None
    assert found.shards.keys() == {0, 1, 2}


# --- what a run is made of


@pytest.fixture
def of(mixtral_copy: Path) -> Callable[..., dict[str, Any]]:
    """What a run on a copy of the model is made of, with other settings or another text if given."""

    def make(config: dict[str, Any] | None = None, tokens: str = "a", device: str = "cpu") -> dict[str, Any]:
        settings = {"seed": 0, "name": "x", "model": {"path": "p", "dimensions": {"a": [1]}}} | (config or {})
        text = CalibrationTokens([], tokens)
        identity = Checkpoint(mixtral_copy, None).identity(lambda file: str(digest_of(file)))
        return made_of(settings, identity, torch.device(device), text.sha256, torch.zeros(0, 4, dtype=torch.int64))

    return make


def test_all_that_moves_the_weights_is_named(of: Callable[..., dict[str, Any]]) -> None:
    whole = of()
    assert whole["model.dimensions.a"] == [1]
    assert json.loads(json.dumps(whole)) == whole  # else no run would go on

    def changed(**other: Any) -> set[str]:
        now = of(**other)
        return {name for name in whole.keys() | now.keys() if whole.get(name) != now.get(name)}

    assert changed(config={"seed": 1}) == {"seed"}
    assert changed(config={"model": {"path": "q", "dimensions": None}}) == {"model.path", "model.dimensions.a"}
    assert changed(tokens="b") == {"calibration tokens"}
    assert changed(device="cuda") == {"device"}
    assert changed(config={"name": "y", "save": True, "eval": {"limit": 3}, "resume": "restart"}) == set()


def test_the_source_is_known_by_its_content(of: Callable[..., dict[str, Any]], mixtral_copy: Path) -> None:
    """Not by sizes and times: a copy that has others is the same model, and one that has the same may be another."""
    whole = of()
    os.utime(mixtral_copy / "model.safetensors")
    assert of() == whole
    content = bytearray((mixtral_copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (mixtral_copy / "model.safetensors").write_bytes(content)
    assert of()["checksum of model.safetensors"] != whole["checksum of model.safetensors"]
    config = json.loads((mixtral_copy / "config.json").read_text())
    (mixtral_copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert of()["checksum of config.json"] != whole["checksum of config.json"]


# --- what a journal is worth


def test_a_journal_that_was_edited_is_not_trusted(tmp_path: Path) -> None:
    """To other valid values: the plan would have been carried out."""
    journal = Journal(tmp_path, RUN, anew=False)
    journal.add("experts", PLAN)
    journal.add("allocate", RATIOS)
    text = (tmp_path / JOURNAL).read_text()
    (tmp_path / JOURNAL).write_text(text.replace("[0, 3]", "[2, 3]", 1))
    with pytest.raises(ValueError, match=r"journal\.jsonl, line 3: damaged; pass resume=restart"):
        Journal(tmp_path, RUN, anew=False)
    assert Journal(tmp_path, RUN, anew=True).find("experts", Plan) is None


def test_a_line_that_is_missing_or_moved_is_noticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RUN, anew=False)
    journal.add("experts", PLAN)
    journal.add("allocate", RATIOS)
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
