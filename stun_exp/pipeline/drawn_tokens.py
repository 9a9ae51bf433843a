"""The calibration tokens, which another run may have drawn."""

from collections.abc import Mapping
from typing import Any

from stun_exp.calibration.protocol import Answer, Calibration, CalibrationTokens
from stun_exp.state.cache import Store
from stun_exp.state.fingerprint import made_by
from stun_exp.state.identity import Digest


def drawn_tokens(
    calibration: Calibration,
    tokenizer: Any,
    seed: int,
    decoder_start: int | None,
    companions: Mapping[str, str],
    store: Store,
    digest: Digest,
    answer: Answer | None = None,
) -> CalibrationTokens:
    """The tokens of a calibration, drawn once for equal text, settings and tokenizer.

    Of a calibration that asks the model the answers are kept, and not the tokens: a run is charged with what they took.

    Args:
        calibration: Where the text comes from, and how much of it.
        tokenizer: The model's.
        seed: Of what is drawn by chance.
        decoder_start: The token that the decoder of an encoder-decoder begins with.
        companions: The sha256 of the files beside the weights, the tokenizer's among them.
        store: The cache.
        digest: Gives the sha256 of a file.
        answer: Asks the unpruned model, for a calibration that does.

    Raises:
        ValueError: The text is too short, or of the wrong kind.
    """
    if answer is not None:
        return calibration.tokens(tokenizer, seed, decoder_start, answer)
    key = {
        "calibration": f"{type(calibration).__qualname__} {calibration!r}",
        "text": [digest(file) for file in calibration.reads()],
        "seed": seed,
        "decoder_start": decoder_start,
        "tokenizer": dict(companions),
        **made_by(*(type(part).__module__ for part in calibration.parts())),
    }
    found = store.find("tokens", key)
    if found is not None:
        return CalibrationTokens(**found)
    tokens = calibration.tokens(tokenizer, seed, decoder_start)
    store.add("tokens", key, vars(tokens))
    return tokens
