"""Sources and targets become batches without padding, and the decoder reads what it read in training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from stun_exp.calibration.pairs import Pairs
from stun_exp.calibration.protocol import decoder_start
from stun_exp.calibration.toy import ToyText

START = 7


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[[str], Path]) -> Any:
    """Words w0 ... w63 are the ids 0 ... 63."""
    return AutoTokenizer.from_pretrained(tiny_model("switch_transformers"))


def pairs(path: Path, num_sequences: int = 2, sequence_length: int = 9, batch_size: int = 2) -> Pairs:
    return Pairs(path=str(path), num_sequences=num_sequences, sequence_length=sequence_length, batch_size=batch_size)


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tokens(*lengths: tuple[int, int]) -> list[dict[str, Any]]:
    """A pair of the given lengths for each; pair i is made of the token i alone."""
    return [{"input_ids": [i] * source, "labels": [i] * target} for i, (source, target) in enumerate(lengths, 1)]


def test_the_decoder_reads_the_target_behind_its_start_without_its_last_token(tmp_path: Path, tokenizer: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"input_ids": [1, 2, 3], "labels": [4, 5, 6, 8]})
    made = pairs(file, 1).tokens(tokenizer, 0, START)
    assert [batch.tolist() for batch in made.batches_BT] == [[[1, 2, 3]]]
    assert [batch.tolist() for batch in made.targets_BT] == [[[START, 4, 5, 6]]]


@pytest.mark.parametrize("family", ["switch_transformers", "nllb-moe"])
def test_the_decoder_reads_what_the_models_own_shift_makes_of_labels(
    tiny_model: Callable[[str], Path], tmp_path: Path, tokenizer: Any, family: str
) -> None:
    """Guards against a missing start token, or a target that is a place too early: logits are those of `labels=`."""
    file = jsonl(tmp_path / "a.jsonl", {"input_ids": [1, 2, 3], "labels": [4, 5, 6, 8]})
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_model(family)).eval()
    model.config.decoder_start_token_id = START
    made = pairs(file, 1).tokens(tokenizer, 0, decoder_start(model.config))
    with torch.inference_mode():
        trained = model(input_ids=made.batches_BT[0], labels=torch.tensor([[4, 5, 6, 8]])).logits
        ours = model(input_ids=made.batches_BT[0], decoder_input_ids=made.targets_BT[0]).logits
    assert torch.equal(trained, ours)


def test_text_and_tokens_are_the_same(tmp_path: Path, tokenizer: Any) -> None:
    as_text = jsonl(tmp_path / "text.jsonl", {"source": "w1 w2", "target": "w3 w4"}, {"source": "w5", "target": "w6"})
    as_ids = jsonl(tmp_path / "ids.jsonl", {"input_ids": [1, 2], "labels": [3, 4]}, {"input_ids": [5], "labels": [6]})
    hashes = {pairs(file).tokens(tokenizer, 0, START).sha256 for file in (as_text, as_ids)}
    assert len(hashes) == 1


def test_target_text_is_tokenized_as_a_target(tmp_path: Path) -> None:
    """NLLB puts another language's code on it: a tokenizer called without `text_target` would give the source's."""

    class TwoLanguages:
        def __call__(self, text: str | None = None, text_target: str | None = None) -> dict[str, list[int]]:
            return {"input_ids": [1, 2]} if text_target is None else {"input_ids": [3, 4, 5]}

    file = jsonl(tmp_path / "a.jsonl", {"source": "a", "target": "b"})
    made = pairs(file, 1).tokens(TwoLanguages(), 0, START)
    assert (made.batches_BT[0].tolist(), made.targets_BT[0].tolist()) == ([[1, 2]], [[START, 3, 4]])


def test_a_batch_holds_pairs_of_equal_lengths(tmp_path: Path, tokenizer: Any) -> None:
    """Padding would be routed to experts: sources alike with targets unlike are two batches, and four alike two."""
    file = jsonl(tmp_path / "a.jsonl", *tokens((3, 2), (3, 5), (3, 2), (4, 2), (3, 2), (3, 2)))
    made = pairs(file, 6).tokens(tokenizer, 0, START)
    shapes = [(tuple(s.shape), tuple(t.shape)) for s, t in zip(made.batches_BT, made.targets_BT, strict=True)]
    assert sorted(shapes) == [((1, 3), (1, 5)), ((1, 4), (1, 2)), ((2, 3), (2, 2)), ((2, 3), (2, 2))]
    assert made.num_tokens == (3 + 2) * 4 + (3 + 5) + (4 + 2)
    for sources, targets in zip(made.batches_BT, made.targets_BT, strict=True):
        assert torch.equal(sources[:, 0], targets[:, 1])  # a source stays with its target
        assert {sources.dtype, targets.dtype} == {torch.int64}


def test_sequence_length_caps_sources_and_targets(tmp_path: Path, tokenizer: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"input_ids": [1, 2, 3, 4, 5], "labels": [11, 12, 13, 14, 15, 16]})
    made = pairs(file, 1, sequence_length=3).tokens(tokenizer, 0, START)
    assert (made.batches_BT[0].tolist(), made.targets_BT[0].tolist()) == ([[1, 2, 3]], [[START, 11, 12]])
    (note,) = made.notes
    assert "1 of 1 pairs have a source or a target of more than calibration.sequence_length=3 tokens" in note
    assert pairs(file, 1, sequence_length=6).tokens(tokenizer, 0, START).notes == []


def test_the_seed_decides_and_the_hash_tells_pairs_not_batches(tmp_path: Path, tokenizer: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", *tokens(*[(3, 2), (4, 3)] * 20))
    hashes = [pairs(file, 10).tokens(tokenizer, seed, START).sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert pairs(file, 10, batch_size=5).tokens(tokenizer, 0, START).sha256 == hashes[0]


def test_the_hash_covers_targets_and_their_start(tmp_path: Path, tokenizer: Any) -> None:
    one = jsonl(tmp_path / "a.jsonl", {"input_ids": [1, 2], "labels": [3, 4]})
    other = jsonl(tmp_path / "b.jsonl", {"input_ids": [1, 2], "labels": [5, 4]})
    hashes = {pairs(file, 1).tokens(tokenizer, 0, start).sha256 for file in (one, other) for start in (START, 0)}
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"source": "w1", "target": "w2"}\n{"source": \n', "a.jsonl, line 2: not JSON"),
        ('["w1", "w2"]\n', "a.jsonl, line 1: needs `source` and `target`, or `input_ids` and `labels`"),
        ('{"text": "w1"}\n', "line 1: needs `source` and `target`, or `input_ids` and `labels`"),
        ('{"source": "w1", "labels": [1]}\n', "line 1: needs `source` and `target`, or `input_ids` and `labels`"),
        ('{"input_ids": [1], "labels": [2, -100]}\n', "line 1: `labels` must be integers from 0 to 63"),
        ('{"input_ids": [64], "labels": [2]}\n', "line 1: `input_ids` must be integers from 0 to 63"),
        ('\n{"source": "w1", "target": ""}\n', "line 2: the source or the target is empty"),
        (
            '{"source": "w1", "target": "w2"}\n',
            r"num_sequences=2: calibration.path=\S*a.jsonl holds only 1 pairs; lower",
        ),
        ("", "holds only 0 pairs"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, tokenizer: Any, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        pairs(tmp_path / "a.jsonl").tokens(tokenizer, 0, START)


def test_missing_and_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)path.*no such file"):
        pairs(tmp_path / "nowhere.jsonl")
    (tmp_path / "a.txt").write_text("w1")
    with pytest.raises(ValueError, match=r"(?s)path.*must end in .jsonl"):
        pairs(tmp_path / "a.txt")


def test_pairs_and_plain_text_each_refuse_the_other_kind_of_model(
    tiny_model: Callable[[str], Path], tmp_path: Path, tokenizer: Any
) -> None:
    decoder_only, both = (AutoConfig.from_pretrained(tiny_model(f)) for f in ("mixtral", "switch_transformers"))
    file = jsonl(tmp_path / "a.jsonl", *tokens((3, 2), (3, 2)))
    with pytest.raises(ValueError, match=r"calibration=pairs .* the model is decoder-only.*calibration=local"):
        pairs(file).tokens(tokenizer, 0, decoder_start(decoder_only))
    toy = ToyText(domain="all", num_sequences=2, sequence_length=8, batch_size=1)
    with pytest.raises(ValueError, match=r"an encoder-decoder, .*: pass calibration=pairs"):
        toy.tokens(tokenizer, 0, decoder_start(both))


def test_a_model_that_does_not_say_how_targets_begin_is_refused(tiny_model: Callable[[str], Path]) -> None:
    config = AutoConfig.from_pretrained(tiny_model("switch_transformers"))
    config.decoder_start_token_id = None
    with pytest.raises(ValueError, match=r"switch_transformers: config.json has no decoder_start_token_id"):
        decoder_start(config)
