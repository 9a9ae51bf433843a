"""A machine without a network, and without anything fetched."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stun_exp.data.hub import why_unreachable


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Gives the hub's cache, which is empty."""
    home = tmp_path / "home"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.delenv("HF_MODULES_CACHE", raising=False)
    why_unreachable.cache_clear()
    yield home / "hub"
    why_unreachable.cache_clear()
