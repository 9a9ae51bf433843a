"""Tokens that another run drew are taken where nothing that they depend on differs."""

import json
from pathlib import Path

import pytest
import torch

from stun_exp.calibration.local import LocalText
from stun_exp.calibration.protocol import Calibration
from stun_exp.pipeline.drawn_tokens import drawn_tokens
from stun_exp.state.cache import CacheFolder, Store
from stun_exp.utils.files import digest_of


class Letters:
    """A tokenizer that knows every text: one token a letter."""

    eos_token_id = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_tokens_are_drawn_once_for_equal_text_settings_and_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same name whose text has changed is other text."""
    store = Store(CacheFolder(path=str(tmp_path / "cache"), max_entry_gb=1.0), pytest.fail)
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps({"text": "abcdefgh"[i % 7 :] * 3}) for i in range(20)))
    local = LocalText(path=str(file), num_sequences=3, sequence_length=8, batch_size=2)

    def digest(text: Path) -> str:
        return str(digest_of(text))

    first = drawn_tokens(local, Letters(), 0, None, {"tokenizer.json": "a"}, store, digest)
    with monkeypatch.context() as context:
        context.setattr(Calibration, "tokens", lambda *_: pytest.fail("drawn again"))
        again = drawn_tokens(local, Letters(), 0, None, {"tokenizer.json": "a"}, store, digest)
    assert again.sha256 == first.sha256
    assert all(torch.equal(a, b) for a, b in zip(first.batches_BT, again.batches_BT, strict=True))
    drawn: list[int] = []
    tokens = LocalText.tokens
    monkeypatch.setattr(LocalText, "tokens", lambda *args: drawn.append(1) or tokens(*args))
    drawn_tokens(local, Letters(), 1, None, {"tokenizer.json": "a"}, store, digest)
    drawn_tokens(local, Letters(), 0, None, {"tokenizer.json": "b"}, store, digest)
    drawn_tokens(local.model_copy(update={"batch_size": 1}), Letters(), 0, None, {"tokenizer.json": "a"}, store, digest)
    file.write_text("\n".join(json.dumps({"text": "abcdefgh"[i % 5 :] * 3}) for i in range(20)))
    drawn_tokens(local, Letters(), 0, None, {"tokenizer.json": "a"}, store, digest)
    assert len(drawn) == 4
