"""Data sets as they lie on a machine without a network, small and of our own text."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stun_exp.data.hub import why_unreachable


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a hub that must not be asked; gives the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "home" / "datasets"))
    why_unreachable.cache_clear()
    yield tmp_path / "home" / "hub"
    why_unreachable.cache_clear()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often a hub that is not there was asked."""
    import httpx

    asked: list[str] = []

    def head(url: str, **how: object) -> None:
        asked.append(url)
        raise httpx.ConnectError("no route")

    monkeypatch.setattr("httpx.head", head)
    return lambda: len(asked)
