"""The Hugging Face hub: whether it answers, asked once, and where its clients keep what they have fetched."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 5.0
"""How long the one attempt waits; the hub's clients would go on trying for most of a minute."""


@cache
def why_unreachable() -> str:
    """Why nothing can be had from the hub, by one attempt in this process; "" if it answers."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE=1 forbids to ask the hub"
    try:
        httpx.head(constants.ENDPOINT, timeout=ANSWER_SECONDS)  # whatever it answers
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    return ""


@contextmanager
def asked_once() -> Iterator[None]:
    """In the block, hub clients look only at what is on this machine unless the hub answers."""
    if not why_unreachable():
        yield
        return
    from huggingface_hub import constants

    flags: list[Any] = [constants]
    if "datasets" in sys.modules:
        flags.append(sys.modules["datasets"].config)
    before = [module.HF_HUB_OFFLINE for module in flags]
    for module in flags:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(flags, before, strict=True):
            module.HF_HUB_OFFLINE = value


def hub_cache() -> Path:
    """Where repositories are kept: HF_HOME/hub unless HF_HUB_CACHE says otherwise."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def datasets_cache() -> Path:
    """Where the datasets library keeps what it has loaded: HF_HOME/datasets unless HF_DATASETS_CACHE says otherwise."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()
