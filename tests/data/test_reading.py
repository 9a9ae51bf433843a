"""Data sets found and read without a network, whatever layout they lie in."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from data_fixtures import GSM8K, SUMS, card, in_hub_layout, write_rows

from stun_exp.data.hub import asked_once, why_unreachable
from stun_exp.data.missing import Missing, in_words
from stun_exp.data.reading import NotHere, read_set
from stun_exp.data.sets import DataSet, folders_of, snapshot

MAIN = DataSet("openai/gsm8k", "main")


def splits(data_set: DataSet, given: Path | None = None, alone: bool = True) -> dict[str, list[str]]:
    read = read_set(data_set, list(folders_of(data_set.name, given)), alone)
    return {split: rows["question"][:] for split, rows in read.items()}


QUESTIONS = {
    "train": [row["question"] for row in SUMS[:8]],
    "test": [row["question"] for row in SUMS[8:]],
}


def test_a_snapshot_in_the_hubs_cache_is_read(no_network: Path) -> None:
    in_hub_layout(no_network, "openai/gsm8k", GSM8K)
    assert splits(MAIN) == QUESTIONS


def test_the_snapshot_is_the_one_that_main_was_at_and_else_the_newest(tmp_path: Path) -> None:
    newer = in_hub_layout(tmp_path, "a/b", {"x.jsonl": SUMS}, "newer")
    older = in_hub_layout(tmp_path, "a/b", {"x.jsonl": SUMS}, "older")
    os.utime(older, (1, 1))
    assert snapshot("a/b", tmp_path) == older
    (tmp_path / "datasets--a--b" / "refs" / "main").unlink()
    assert snapshot("a/b", tmp_path) == newer
    assert snapshot("a/c", tmp_path) is None


@pytest.mark.parametrize("place", ["gsm8k", "openai/gsm8k", "gsm8k/main", "openai/gsm8k/main"])
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_a_folder_by_the_name_of_the_data_set_is_read(tmp_path: Path, place: str, ending: str) -> None:
    write_rows(tmp_path / place / f"train-8.{ending}", SUMS[:8])
    write_rows(tmp_path / place / f"test.{ending}", SUMS[8:])
    assert splits(MAIN, tmp_path) == QUESTIONS


@pytest.mark.parametrize("inside", [".", "hub"])
def test_a_folder_may_be_laid_out_like_the_hubs_cache(tmp_path: Path, inside: str) -> None:
    in_hub_layout(tmp_path / inside, "openai/gsm8k", GSM8K)
    assert splits(MAIN, tmp_path) == QUESTIONS


def test_files_without_a_part_are_not_taken_for_each_of_several(tmp_path: Path) -> None:
    """All 57 subjects of MMLU would be one."""
    write_rows(tmp_path / "mmlu" / "test.jsonl", SUMS)
    anatomy = DataSet("cais/mmlu", "anatomy")
    assert splits(anatomy, tmp_path) == {"test": [row["question"] for row in SUMS]}
    with pytest.raises(NotHere):
        splits(anatomy, tmp_path, alone=False)


def test_a_part_that_was_not_fetched_is_not_here(no_network: Path) -> None:
    in_hub_layout(no_network, "openai/gsm8k", GSM8K)
    for part in ("socratic", "no such part"):
        with pytest.raises(NotHere):
            splits(DataSet("openai/gsm8k", part))


def test_a_part_may_be_named_by_the_card_alone(tmp_path: Path) -> None:
    """Where its files are, the card says, and no folder has its name."""
    write_rows(tmp_path / "ai2" / "data" / "easy.parquet", SUMS[:2])
    write_rows(tmp_path / "ai2" / "data" / "hard.parquet", SUMS[2:])
    parts = {"Easy": {"test": "data/easy.parquet"}, "Hard": {"test": "data/hard.parquet"}}
    (tmp_path / "ai2" / "README.md").write_text(card(parts))
    found = [splits(DataSet("allenai/ai2", part), tmp_path, alone=False)["test"] for part in parts]
    assert [len(rows) for rows in found] == [2, 10]


def test_new_content_under_an_old_time_is_read(tmp_path: Path) -> None:
    """The datasets library's cache goes by names and times, and would give what it read before."""
    file = write_rows(tmp_path / "gsm8k" / "test.jsonl", SUMS[:2])
    os.utime(file, (1, 1))
    before = splits(MAIN, tmp_path)
    write_rows(file, SUMS[2:4])
    os.utime(file, (1, 1))
    assert splits(MAIN, tmp_path) != before


@pytest.mark.parametrize("name", ["test.parquet", "test.jsonl", "test.jsonl.gz"])
def test_a_file_that_is_cut_off_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "gsm8k" / "train.parquet", SUMS)
    file = write_rows(tmp_path / "gsm8k" / name, SUMS)
    file.write_bytes(file.read_bytes()[:-15])
    with pytest.raises(ValueError, match="fetch it again") as refused:
        splits(MAIN, tmp_path)
    assert str(refused.value).startswith(f"{file}: cannot be read as data")
    assert "\n" not in str(refused.value)


def test_the_hub_is_asked_once_and_then_let_alone(monkeypatch: pytest.MonkeyPatch, counted: Callable[[], int]) -> None:
    """Its clients would try for 40 seconds, for each data set."""
    from datasets import config
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    for name in ("openai/gsm8k", "allenai/ai2_arc"):
        with pytest.raises(NotHere):
            read_set(DataSet(name), [], True)
    assert counted() == 1
    assert "ConnectError" in why_unreachable()
    with asked_once():
        assert (constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE) == (True, True)
    assert (constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE) == (False, False)


def test_hf_hub_offline_forbids_to_ask(counted: Callable[[], int]) -> None:
    with pytest.raises(NotHere):
        read_set(MAIN, [], True)
    assert counted() == 0
    assert "HF_HUB_OFFLINE=1" in why_unreachable()


def test_all_that_is_missing_is_one_error_with_one_command() -> None:
    places = ("/cache/hub",)
    missing = [
        Missing("allenai/ai2_arc (ARC-Easy)", "eval", places),
        Missing("allenai/ai2_arc (ARC-Challenge)", "eval", places),
        *(Missing(f"cais/mmlu (subject {n})", "eval", places) for n in range(5)),
        Missing("Rowan/hellaswag", "eval", places),
        Missing("allenai/c4 (en/x.json.gz)", "calibration", ("shard as a file",)),
    ]
    first, looked, command = in_words(missing, {"eval": "paper", "calibration": "c4"}).split("\n")
    assert "allenai/ai2_arc (ARC-Easy, ARC-Challenge), cais/mmlu (subject 0, subject 1, subject 2 and 2 more" in first
    assert "Rowan/hellaswag, allenai/c4 (en/x.json.gz); HF_HUB_OFFLINE=1" in first
    assert looked.strip() == "looked for in /cache/hub; shard as a file"
    assert "`stun fetch eval=paper calibration=c4 --to DIR`" in command
