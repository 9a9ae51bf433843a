"""The command `stun`: checks the command line, then lets Hydra run it, one job or many."""

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stun_exp.cli import HYDRA_ERRORS, check, one_line
from stun_exp.config import ConfigError, build
from stun_exp.overrides import CONFIG_NAME

PACKAGE = Path(__file__).parent
# In a wheel the configs lie in the package, in a checkout beside it.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
SHOW_ALL = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user wants every traceback; read here, because `main` sets the variable for Hydra."""


def job(cfg: DictConfig) -> None:
    """Runs what `cfg` describes, in the output directory that Hydra made for it; exits with 1 if that fails."""
    settings = build(cfg)
    # Late, for a quick answer to a mistake: torch comes in with run, and libraries must be prepared before it.
    from stun_exp.progress import prepare_libraries

    prepare_libraries()
    from stun_exp.run import run

    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    here = HydraConfig.get()
    try:
        run(settings, Path(here.runtime.output_dir), {str(key): value for key, value in config.items()})
    except Exception as error:
        # An OSError names its file. Our ValueErrors are for users; a library's may be our bug and keeps its traceback.
        ours = isinstance(error, OSError) or (isinstance(error, ValueError) and _raised_here(error))
        if SHOW_ALL or not ours:
            traceback.print_exception(error)
        else:
            print(f"error: {error}", file=sys.stderr)
        if here.mode == RunMode.MULTIRUN:
            print(f"in the job {' '.join(here.overrides.task)}", file=sys.stderr)
        sys.exit(1)


def main(conf: Path = CONF) -> None:
    """Runs the command line; exits with 2 for a mistake in it or a config, with 1 for a run that failed."""
    try:
        sys.argv[1:] = check(sys.argv[1:], conf)
        os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print, so that it is told here
        hydra.main(version_base="1.3", config_path=str(conf), config_name=CONFIG_NAME)(job)()
    except ConfigError as error:
        count = len(error.mistakes)
        print(f"stun: {count} mistake{'s' * (count > 1)}, nothing was run", file=sys.stderr)
        print(*(f"  {line}" for line in error.mistakes), sep="\n", file=sys.stderr)
        sys.exit(2)
    except HYDRA_ERRORS as error:
        if SHOW_ALL:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _raised_here(error: Exception) -> bool:
    """Whether an error comes from our own code and not from a library that it calls."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("stun_exp")


if __name__ == "__main__":
    main()
