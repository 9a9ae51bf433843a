"""The command `stun`: checks the command line, then lets Hydra run it, one job or many."""

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from stun_exp.cli import HYDRA_ERRORS, check, one_line
from stun_exp.config import ConfigError, build
from stun_exp.overrides import CONFIG_NAME

PACKAGE = Path(__file__).parent
# In a wheel the configs lie in the package, in a checkout beside it.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def job(cfg: DictConfig) -> None:
    """Runs what `cfg` describes, in the output directory that Hydra made for it."""
    settings = build(cfg)
    # Late, for a quick answer to a mistake: torch comes in with run, and libraries must be quieted before it.
    from stun_exp.progress import prepare_libraries

    prepare_libraries()
    from stun_exp.run import run

    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    run(
        settings,
        Path(HydraConfig.get().runtime.output_dir),
        {str(key): value for key, value in config.items()},
    )


def main(conf: Path = CONF) -> None:
    """Runs the command line; exits with 2 for a mistake in it or a config, with 1 for a run that failed."""
    show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        sys.argv[1:] = check(sys.argv[1:], conf)
    except ConfigError as error:
        _exit_for_mistakes(error)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print, so that it is told here
    try:
        hydra.main(version_base="1.3", config_path=str(conf), config_name=CONFIG_NAME)(job)()
    except Exception as error:
        if show_all:
            raise
        if isinstance(error, ConfigError):
            _exit_for_mistakes(error)
        _exit_for(error)


def _exit_for_mistakes(error: ConfigError) -> NoReturn:
    count = len(error.mistakes)
    print(f"stun: {count} mistake{'s' * (count > 1)}, nothing was run", file=sys.stderr)
    print(*(f"  {line}" for line in error.mistakes), sep="\n", file=sys.stderr)
    sys.exit(2)


def _exit_for(error: Exception) -> NoReturn:
    in_job = _within_job(error.__traceback__)
    if in_job is None and isinstance(error, HYDRA_ERRORS):
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    # An OSError names its file. Our ValueErrors are for users; a library's may be our bug and keeps its
    # traceback.
    if isinstance(error, OSError) or (isinstance(error, ValueError) and _raised_here(error.__traceback__)):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(type(error), error, in_job or error.__traceback__)
    sys.exit(1)


def _within_job(tb: TracebackType | None) -> TracebackType | None:
    """The part of a traceback below Hydra, from `job` on; None if no job was running."""
    while tb is not None and tb.tb_frame.f_code is not job.__code__:
        tb = tb.tb_next
    return tb


def _raised_here(tb: TracebackType | None) -> bool:
    """Whether the innermost frame of a traceback is our own code."""
    frames = [frame for frame, _ in traceback.walk_tb(tb)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("stun_exp")


if __name__ == "__main__":
    main()
