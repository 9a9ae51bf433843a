"""C4: how documents are drawn, and where its shards are found."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from data_fixtures import in_hub_layout, write_rows
from pydantic import ValidationError
from transformers import AutoTokenizer

from stun_exp.calibration.c4 import C4
from stun_exp.data.hub import why_unreachable
from stun_exp.data.missing import MissingData
from stun_exp.data.sets import DataSet

SHARD = "en/one.json.gz"


@pytest.fixture
def tokenizer(tiny_model: Any) -> Any:
    """Words w0 ... w63 are the ids 0 ... 63, and w0 ends a text."""
    return AutoTokenizer.from_pretrained(tiny_model("mixtral"))


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of a hub that must not be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    why_unreachable.cache_clear()
    yield tmp_path / "hub"
    why_unreachable.cache_clear()


def words(*ids: int) -> str:
    return " ".join(f"w{i}" for i in ids)


# Document d is d, d+1, d+2, ...: a crop says where it was taken.
DOCUMENTS = [
    {"text": words(*range(d, d + length)), "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org"}
    for d, length in [(1, 3), (10, 8), (20, 9), (30, 4), (40, 20)]
]


def crops(num_sequences: int, shard: Path | str) -> C4:
    return C4(shard=str(shard), num_sequences=num_sequences, sequence_length=4, batch_size=1)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "own" / SHARD, DOCUMENTS)


def rows(calibration: C4, tokenizer: Any, seed: int) -> list[list[int]]:
    return [list(row) for row in calibration.sequences(tokenizer, seed)]


def test_crops_are_runs_of_one_document_longer_than_a_sequence(shard: Path, tokenizer: Any) -> None:
    """Documents of 3 and of exactly 4 are too short, as in Wanda's code; no document is used twice."""
    for seed in range(8):
        sequences = rows(crops(3, shard), tokenizer, seed)
        assert all(row == list(range(row[0], row[0] + 4)) for row in sequences)
        assert {row[0] // 10 for row in sequences} <= {1, 2, 4, 5}
        assert len({10 if row[0] < 20 else 20 if row[0] < 30 else 40 for row in sequences}) == 3


def test_crops_start_anywhere_but_at_the_very_last_place(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0 to len - length - 1, as in Wanda's code: 8 words have starts 10 to 13, the last place 14 is left out.

    The documents are as the datasets library has them, which is asked for what is in no folder.
    """
    asked: list[Any] = []

    def load_dataset(*names: Any, **how: Any) -> list[dict[str, str]]:
        asked.append((*names, how))
        return DOCUMENTS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    calibration = crops(3, SHARD)
    starts = {row[0] for seed in range(200) for row in islice(calibration.sequences(tokenizer, seed), 3)}
    assert {start for start in starts if start < 20} == {10, 11, 12, 13}
    assert asked[0] == ("allenai/c4", None, {"data_files": {"train": SHARD}, "split": "train"})


def test_it_is_seeded(shard: Path, tokenizer: Any) -> None:
    hashes = [crops(2, shard).tokens(tokenizer, seed).sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_too_few_long_documents_are_refused(shard: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"num_sequences=4 of 4 tokens.*holds only 3"):
        crops(4, shard).tokens(tokenizer, 0)


def test_the_same_shard_gives_the_same_tokens_wherever_it_lies(
    shard: Path, hub: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """A file, a folder in C4's format, a folder laid out like the hub's cache, and that cache."""
    in_hub_layout(tmp_path / "there" / "hub", "allenai/c4", {SHARD: DOCUMENTS})
    places = [shard, shard.parent, shard.parent.parent, tmp_path / "there"]
    found = [rows(crops(3, place), tokenizer, 0) for place in places]
    snapshot = in_hub_layout(hub, "allenai/c4", {SHARD: DOCUMENTS})
    from_hub = crops(3, SHARD)
    assert found == [rows(from_hub, tokenizer, 0)] * 4
    assert from_hub.reads() == [snapshot / SHARD]
    assert crops(3, shard.parent).reads() == [shard]


def test_in_a_folder_the_first_shard_for_training_is_read(shard: Path) -> None:
    for name in ("c4-validation.00000-of-00008.json.gz", "z.json.gz"):
        write_rows(shard.parent / name, DOCUMENTS)
    assert crops(1, shard.parent.parent).reads() == [shard]


def test_what_is_fetched_is_the_shard_unless_it_is_here(shard: Path) -> None:
    assert crops(1, SHARD).data_sets() == [DataSet("allenai/c4", file=SHARD)]
    assert crops(1, shard).data_sets() == []


def test_a_shard_that_is_nowhere_says_where_it_was_looked_for(tokenizer: Any, hub: Path) -> None:
    for ask in (crops(1, SHARD).find, lambda: crops(1, SHARD).tokens(tokenizer, 0)):
        with pytest.raises(MissingData, match=r"allenai/c4 \(en/one.json.gz\)[^~]*stun fetch calibration=") as refused:
            ask()
        assert str(hub) in str(refused.value)


def test_a_shard_that_is_cut_off_or_of_another_kind_is_named(shard: Path, tokenizer: Any, tmp_path: Path) -> None:
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as data") as refused:
        rows(crops(1, shard), tokenizer, 0)
    assert str(refused.value).startswith(str(shard))
    other = write_rows(tmp_path / "other.jsonl", [{"content": "a text"}])
    with pytest.raises(ValueError, match=r"other.jsonl has no field `text` \(it has content\)"):
        rows(crops(1, other), tokenizer, 0)


@pytest.mark.parametrize("wrong", ["en/c4-train", "./not-there.json.gz", "."])
def test_what_can_be_no_shard_is_a_mistake_in_the_settings(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValidationError, match=r"no such f|holds no shard"):
        crops(1, wrong)
