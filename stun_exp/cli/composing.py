"""What Hydra composes, and what it says about running it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from stun_exp.cli.naming import run_name
from stun_exp.cli.overrides import CONFIG_NAME
from stun_exp.config.errors import dotted

OmegaConf.register_new_resolver("run_name", run_name, replace=True)
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
"""What Hydra raises for a reason that is the user's."""
MOST_CONFIGS = 64
"""Of a sweep with more combinations of choices not each is composed: one takes a tenth of a second."""
UNNAMED = "hydra.job.config.override_dirname.exclude_keys"
"""The settings that are not in the names of a sweep's folders."""
PARAMS = "hydra.sweeper.params"
"""What a sweep's file sweeps over."""
FOLDER_NAME = "${folder_name:"
"""What is in hydra.sweep.subdir where we name them."""


class Composed(NamedTuple):
    """A config, and what Hydra says about running it."""

    cfg: DictConfig
    hydra: DictConfig  # the same with Hydra's own settings
    sweep: dict[str, Any]
    mode: RunMode | None
    launcher: dict[str, str]  # its choice and its class
    unnamed: list[str]  # settings that no folder is named by
    run_dir: str | None  # None where that is not known before the run
    sweep_dir: str | None
    names_folders: bool  # whether we name the folders in it, and not a hydra.sweep.subdir that was typed


def composed(overrides: tuple[str, ...]) -> Composed:
    """What Hydra makes of overrides without a sweep; its HydraConfig is of them from here on."""
    cfg = compose(CONFIG_NAME, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # for ${hydra:...} in the settings
    sweep = OmegaConf.to_container(OmegaConf.select(cfg, PARAMS) or OmegaConf.create())
    assert isinstance(sweep, dict)
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    launcher = {"choice": cfg.hydra.runtime.choices["hydra/launcher"], "target": cfg.hydra.launcher._target_}
    run_dir, sweep_dir = (
        None if found is None else str(found)
        for kind in ("run", "sweep")
        for found in [OmegaConf.select(cfg, f"hydra.{kind}.dir", throw_on_resolution_failure=False)]
    )
    unresolved = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)
    assert isinstance(unresolved, dict)
    params = {str(key): value for key, value in sweep.items()}
    unnamed = list(OmegaConf.select(cfg, UNNAMED))
    ours = FOLDER_NAME in str(unresolved["subdir"])
    return Composed(settings, cfg, params, cfg.hydra.mode, launcher, unnamed, run_dir, sweep_dir, ours)


def names_in(cfg: DictConfig) -> frozenset[str]:
    """Every setting in `cfg` by its dotted name."""
    return frozenset(_names(OmegaConf.to_container(cfg)))


def _names(data: Any, path: str = "") -> set[str]:
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    named = [(dotted(path, key), value) for key, value in inside]
    return {name for name, _ in named} | {n for name, value in named for n in _names(value, name)}


@contextmanager
def configs(conf: Path, added: str | None) -> Iterator[None]:
    """Lets Hydra compose what is in `conf` inside the block, and the choices of one more folder: `--config-dir`."""
    with initialize_config_dir(str(conf), version_base="1.3", job_name="stun"):
        if added is not None:
            path = create_config_search_path(str(conf))
            path.prepend("command-line", f"file://{Path(added).absolute()}", SearchPathQuery("schema"))
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("stun", path)
        yield


def one_line(error: Exception) -> str:
    """What an error of Hydra's says, with its cause, on one line."""
    parts = [str(e).strip() for e in (error, error.__cause__) if e is not None and str(e).strip()]
    return "; ".join(" ".join(part.split()) for part in parts) or type(error).__name__
