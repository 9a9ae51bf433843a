"""The toy tokenizer loses nothing, splits numbers into digits, and is what stock transformers loads."""

from itertools import chain, islice

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from scripts.toy.tokenizer import train_tokenizer
from stun_exp.toy import WEIGHTS
from stun_exp.toy.text import training_documents
from stun_exp.toy.world import world


@pytest.fixture(scope="module")
def shipped() -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(WEIGHTS)
    return tokenizer


def test_round_trip_is_exact(shipped: PreTrainedTokenizerFast) -> None:
    # Bytes the world never has, and spaces before punctuation, which a clean-up would remove.
    strange = ["", " a , b .", "naïve 東京 \t\r\n\n x", "#### 12,345", "  two  spaces  ", "don't"]
    for text in [*islice(training_documents(5), 300), *strange]:
        assert shipped.decode(shipped(text)["input_ids"]) == text


def test_adds_no_token_and_splits_digits(shipped: PreTrainedTokenizerFast) -> None:
    assert shipped.convert_ids_to_tokens(shipped(" 123")["input_ids"]) == ["Ġ1", "2", "3"]
    end = shipped.convert_tokens_to_ids("<|endoftext|>")
    assert shipped.eos_token_id == shipped.bos_token_id == shipped.pad_token_id == end
    assert shipped("<|endoftext|>")["input_ids"] == [end]


def test_most_names_are_one_token(shipped: PreTrainedTokenizerFast) -> None:
    names = list(chain.from_iterable(world().names.values()))
    assert sum(len(shipped(f" {name}")["input_ids"]) == 1 for name in names) > 0.8 * len(names)


def test_shipped_tokenizer_is_the_one_the_world_trains(shipped: PreTrainedTokenizerFast) -> None:
    assert shipped.get_vocab() == train_tokenizer().get_vocab()
