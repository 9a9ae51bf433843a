"""A dense model has no experts to prune: what is chosen for it where nothing was typed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from stun_exp.checkpoint.model import BUNDLED_PREFIX
from stun_exp.cli.overrides import parsed_override
from stun_exp.config.conf import CONF
from stun_exp.moe.families import DENSE
from stun_exp.toy import MODELS
from stun_exp.utils.json_files import read_json
from stun_exp.utils.paths import expanded

GROUP = "expert_pruner"
_CHOOSERS = (GROUP, "method", "experiment")
"""Groups whose choice says which expert pruner is wanted."""


def without_experts_(cfg: DictConfig, overrides: Iterable[str]) -> None:
    """Chooses expert_pruner=none for a dense model, unless the overrides say which is wanted.

    HydraConfig, which knows the choices, is told.
    """
    keys = {parsed_override(text).key_or_group.partition(".")[0].partition("@")[0] for text in overrides}
    if keys & set(_CHOOSERS) or model_type(cfg) not in DENSE:
        return
    here: Any = HydraConfig.get()
    with read_write(cfg), open_dict(cfg), read_write(here), open_dict(here):
        cfg[GROUP] = OmegaConf.load(CONF / GROUP / "none.yaml")
        here.runtime.choices[GROUP] = "none"


def model_type(cfg: DictConfig) -> object:
    """What the model's config.json or card says; None where that is not at hand."""
    path, dimensions = (OmegaConf.select(cfg, f"model.{key}") for key in ("path", "dimensions"))
    if not isinstance(path, str):
        return None
    folder = MODELS.get(path.removeprefix(BUNDLED_PREFIX)) if path.startswith(BUNDLED_PREFIX) else expanded(path)
    raw = _config(folder) if folder is not None else None
    return raw.get("model_type") if isinstance(raw, dict) else (dimensions or {}).get("model_type")


def _config(folder: Path) -> object:
    try:
        return read_json(folder / "config.json")
    except (OSError, ValueError):
        return None  # the run tells of it
