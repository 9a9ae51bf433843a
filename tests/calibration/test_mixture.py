"""Sources with shares: whole sequences, interleaved, each known by its source."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from row_files import write_rows
from transformers import AutoTokenizer

from stun_exp.calibration.local import LocalText
from stun_exp.calibration.mixture import Mixture, interleaved
from stun_exp.calibration.pairs import Pairs
from stun_exp.calibration.protocol import Calibration
from stun_exp.cli.check import settings_of
from stun_exp.cli.main import CONF
from stun_exp.pipeline.training_text import training_sequences
from stun_exp.toy import MODELS

NAMES = ("toy", "toy_maths", "more")


@pytest.fixture
def tokenizer(tiny_model: Callable[[str], Path]) -> Any:
    """Words w0 ... w63 are the ids 0 ... 63, and w0 ends a text."""
    return AutoTokenizer.from_pretrained(tiny_model("mixtral"))


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Calibration]:
    """Ten sequences of four each: of `code` tokens below 20, of `maths` others. The size that they say is wrong."""
    rows = {name: [{"input_ids": [first + i] * 4} for i in range(10)] for name, first in (("code", 1), ("maths", 30))}
    files = {name: write_rows(tmp_path / f"{name}.jsonl", rows[name]) for name in rows}
    return {n: LocalText(path=str(f), num_sequences=999, sequence_length=7, batch_size=5) for n, f in files.items()}


def mixture(sources: dict[str, Calibration], number: int, **weights: float) -> Mixture:
    return Mixture(sources=sources, weights=weights, num_sequences=number, sequence_length=4, batch_size=2)


def test_shares_by_hand() -> None:
    """Of 3 : 1, the fourth place is the second source's; every four together are as the weights say."""
    assert interleaved({"a": 3, "b": 1}, 8) == ["a", "a", "b", "a", "a", "a", "b", "a"]
    assert interleaved({"a": 1, "b": 1}, 4) == ["a", "b", "a", "b"]


@pytest.mark.parametrize("weights", [{"a": 0.1, "b": 0.2, "c": 0.7}, {"a": 5, "b": 1, "c": 1, "d": 1}])
def test_every_beginning_has_about_the_shares(weights: dict[str, float]) -> None:
    order, total = interleaved(weights, 200), sum(weights.values())
    for length in range(1, 201):
        for name, weight in weights.items():
            assert abs(order[:length].count(name) - length * weight / total) < 1.5
    assert interleaved(weights, 50) == order[:50]


def test_whole_sequences_come_from_each_source_in_turn(tokenizer: Any, sources: dict[str, Calibration]) -> None:
    """Size and length are the mixture's."""
    tokens = mixture(sources, 6, code=2, maths=1).tokens(tokenizer, 0)
    assert tokens.domains == ["code", "maths", "code", "code", "maths", "code"]
    assert torch.cat(tokens.batches_BT).tolist() == [[i] * 4 for i in (1, 30, 2, 3, 31, 4)]
    assert [len(batch) for batch in tokens.batches_BT] == [2, 2, 2]


def test_what_a_source_says_of_its_text_names_the_source(tokenizer: Any, sources: dict[str, Calibration]) -> None:
    notes = mixture(sources, 6, code=2, maths=1).tokens(tokenizer, 0).notes
    assert [note.split(": ")[0] for note in notes] == ["calibration.sources.code", "calibration.sources.maths"]
    assert "the first 4 of them; the other 6 are not used" in notes[0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"toy": 3, "toy_maths": 3}),
        (["calibration.weights.toy=2"], {"toy": 4, "toy_maths": 2}),
        (["calibration@calibration.sources.toy=toy_maths"], {"toy": 3, "toy_maths": 3}),
        (["+calibration@calibration.sources.more=toy", "+calibration.weights.more=1"], dict.fromkeys(NAMES, 2)),
        (["~calibration@calibration.sources.toy", "~calibration.weights.toy"], {"toy_maths": 6}),
    ],
)
def test_the_choice_mixes_the_toys_texts_and_sources_are_added_by_name(
    overrides: list[str], expected: dict[str, int]
) -> None:
    size = ["calibration.num_sequences=6", "calibration.sequence_length=32"]
    settings = settings_of(["calibration=mixture", *size, *overrides], CONF)
    tokenizer = AutoTokenizer.from_pretrained(MODELS["toy_moe"])
    assert Counter(settings.calibration.draw(tokenizer, 0).domains) == expected


def test_a_weight_of_0_leaves_a_source_out(tokenizer: Any, sources: dict[str, Calibration]) -> None:
    """Its file is not part of what the tokens depend on either."""
    calibration = mixture(sources, 3, code=0, maths=1)
    assert calibration.tokens(tokenizer, 0).domains == ["maths"] * 3
    assert calibration.reads() == sources["maths"].reads()
    assert mixture(sources, 3, code=1, maths=1).reads() == [*sources["code"].reads(), *sources["maths"].reads()]
    assert calibration.parts() == [calibration, sources["maths"]]


def test_a_recovery_trains_on_what_follows_in_the_same_shares(tokenizer: Any, sources: dict[str, Calibration]) -> None:
    calibration = mixture(sources, 4, code=1, maths=1)
    assert training_sequences(calibration, tokenizer, 0, 3)[:, 0].tolist() == [3, 32, 4]


def test_a_source_that_is_too_short_for_its_share_is_named(tokenizer: Any, sources: dict[str, Calibration]) -> None:
    with pytest.raises(ValueError, match=r"sources.maths: 12 sequences of 4 tokens are its share, .* holds only 10"):
        mixture(sources, 16, code=1, maths=3).tokens(tokenizer, 0)


def test_a_share_of_less_than_a_sequence_is_refused(tokenizer: Any, sources: dict[str, Calibration]) -> None:
    with pytest.raises(ValueError, match=r"calibration.weights.maths=0.01: its share of calibration.num_sequences=4"):
        mixture(sources, 4, code=1, maths=0.01).tokens(tokenizer, 0)


def test_an_error_in_a_source_names_the_source(tmp_path: Path, tokenizer: Any, sources: dict[str, Calibration]) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    bad = LocalText(path=str(tmp_path / "bad.jsonl"), num_sequences=1, sequence_length=4, batch_size=1)
    with pytest.raises(ValueError, match=r"calibration.sources.code: calibration.path=\S*bad.jsonl, line 1: needs"):
        mixture(sources | {"code": bad}, 4, code=1, maths=1).tokens(tokenizer, 0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"code": 1}, r"the source maths has no weight; pass \+calibration.weights.maths=1"),
        ({"code": 1, "maths": 1, "law": 1}, r"a weight for law, and no such source; pass ~calibration.weights.law"),
        ({"code": 0, "maths": 0}, "no source has a weight above 0"),
        ({"code": -1, "maths": 1}, "greater than or equal to 0"),
    ],
)
def test_weights_are_those_of_the_sources(
    sources: dict[str, Calibration], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(sources, 4, **weights)


def test_pairs_are_no_source(tmp_path: Path, tokenizer: Any, sources: dict[str, Calibration]) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", [{"input_ids": [1], "labels": [1]}])
    pairs = Pairs(path=str(file), num_sequences=1, sequence_length=4, batch_size=1)
    with pytest.raises(ValueError, match=r"calibration.sources.code: .*nor is it a source of a mixture"):
        mixture(sources | {"code": pairs}, 4, code=1, maths=1).tokens(tokenizer, 0)
