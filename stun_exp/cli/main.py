"""The command `stun`: checks the command line, then lets Hydra run it, one job or many; or inspects, or fetches."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stun_exp.cli.check import checked, settings_of
from stun_exp.cli.composing import HYDRA_ERRORS, one_line
from stun_exp.cli.dense import without_experts_
from stun_exp.cli.interrupts import spare_workers, stop_if_told, stoppable
from stun_exp.cli.naming import folder_name
from stun_exp.cli.overrides import CONFIG_NAME
from stun_exp.cli.partial_settings import PartialSetting, left_out_where_lacking, warnings_for
from stun_exp.cli.places import check_vacant, not_made
from stun_exp.cli.sweep import SweepEnd, conclude
from stun_exp.config.build import ConfigError, specs_from
from stun_exp.config.conf import CONF
from stun_exp.report.data.failures import forget_error, keep_error
from stun_exp.utils.paths import expanded

SHOW_ALL = os.environ.get("HYDRA_FULL_ERROR") == "1" and "STUN_SHORT_ERRORS" not in os.environ
"""Whether the user wants every traceback; read here, because `main` sets the first variable for Hydra.

It sets the second for the processes of a sweep, which inherit the first.
"""

# Both here, because the processes of a sweep import this module, and compose their configs before they call it.
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
# A launcher's config has the name of its plugin's, which it is checked against: as wanted, and nothing to tell.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

EXPERTS = "--experts"
INSPECT_HELP = """stun inspect tells what a model is, what of it fits where, and what a run of it will need.

It reads config.json and the index, no weights; of a hub repository it fetches nothing but JSON.

  stun inspect KEY=VALUE ...             the settings of a run, as for stun
  stun inspect --experts KEY=VALUE ...   how alike its experts are by their routers, which are read, and nothing else

Examples:

  stun inspect model=mixtral_8x7b
  stun inspect model=local model.path=DIR model.dtype=bfloat16 calibration=c4 unstructured_pruner=sparsegpt
  stun inspect --experts model=toy_upcycled
"""
TO = "--to"
FETCH_HELP = """stun fetch brings all that a run reads to this machine: its model, its benchmarks' data, its text.

It needs a network. Each thing is loaded once, to see that it is whole; what is there already is not fetched again.

  stun fetch KEY=VALUE ...             into the cache of the Hugging Face hub
  stun fetch --to DIR KEY=VALUE ...    into one folder, for a machine without a network: HF_HOME=DIR there

Examples:

  stun fetch eval=paper calibration=c4 model=mixtral_8x7b
  stun fetch --to DIR eval=code
"""


def job(cfg: DictConfig, settings: Sequence[PartialSetting] = ()) -> float | None:
    """Runs what `cfg` describes, in the output directory that Hydra made for it; exits with 1 if that fails.

    `settings` are those that were typed for its sweep and that some of the points lack.

    Gives what a search of settings minimizes. In a sweep the failure is left in the run's folder, for its end
    to tell: to raise it, or to exit, would stop other runs under one launcher or another.
    """
    here = HydraConfig.get()
    if here.mode != RunMode.MULTIRUN:
        _Single.folder = Path(here.runtime.output_dir)
    try:
        forget_error(Path(here.runtime.output_dir))
        without_experts_(cfg, here.overrides.task)
        warned = warnings_for(settings, here.overrides.task, here.runtime.choices)
        specs = [spec._replace(warnings=warned) for spec in specs_from(cfg, Path(here.runtime.output_dir))]
        # Late, for a quick answer to a mistake: torch comes in with run, and libraries must be prepared before it.
        from stun_exp.utils.progress import loading

        with loading():
            from stun_exp.api import run_all
            from stun_exp.cli.objective import objective
            from stun_exp.report.tables.results import results_table

        sweep = None
        if here.mode == RunMode.MULTIRUN:
            sweep = Path(here.sweep.dir).absolute().name
            for spec in specs:
                check_vacant(spec.out, spec.config, here.sweep.dir)
        for report in run_all(specs, here.runtime.choices, sweep):
            results_table([report]).show()
        return objective([spec.out for spec in specs])
    except Exception as error:
        stop_if_told()
        if here.mode != RunMode.MULTIRUN and isinstance(error, ConfigError):
            raise
        told = _tell(error)
        if here.mode != RunMode.MULTIRUN:
            sys.exit(1)
        print(f"in the job {' '.join(here.overrides.task)}", file=sys.stderr)
        keep_error(Path(here.runtime.output_dir), told, error)
        return None


def inspect_command(overrides: list[str], conf: Path) -> None:
    """Prints what the model that `overrides` choose is, and what a run will need; exits with 1 if that fails."""
    if {"--help", "-h"} & set(overrides):
        print(INSPECT_HELP, end="")
        return
    settings = settings_of([text for text in overrides if text != EXPERTS], conf)
    from stun_exp.utils.progress import loading

    with loading():
        from stun_exp.inspection import experts, show

    try:
        if EXPERTS in overrides:
            print(experts.router_redundancy(settings.model.path, settings.model.open()))
        else:
            print(show.facts_of(settings))
    except Exception as error:
        stop_if_told()
        _tell(error)
        sys.exit(1)


def fetch_command(arguments: list[str], conf: Path) -> None:
    """Fetches what a run with the settings in `arguments` reads; exits with 1 if that fails."""
    if {"--help", "-h"} & set(arguments):
        print(FETCH_HELP, end="")
        return
    overrides, to = _without_to(arguments)
    settings = settings_of(overrides, conf)
    from stun_exp.utils.progress import loading

    with loading():
        from stun_exp.fetching.fetch import fetch

    try:
        for line in fetch(settings, to):
            print(line, flush=True)
    except Exception as error:
        stop_if_told()
        _tell(error)
        sys.exit(1)


def speed_command(words: list[str], conf: Path) -> None:
    """Prints what pruning is worth in use, of the runs or models among the words; exits with 1 if that fails."""
    from stun_exp.cli import speed

    if {"--help", "-h"} & set(words):
        print(speed.HELP, end="")
        return
    from stun_exp.utils.progress import loading

    try:
        with loading():
            import stun_exp.inference.side_by_side  # noqa: F401
        for table in speed.tables_of(words, conf):
            table.show()
    except ConfigError:
        raise
    except Exception as error:
        stop_if_told()
        _tell(error)
        sys.exit(1)


def _without_to(arguments: list[str]) -> tuple[list[str], Path | None]:
    """(The settings, the folder behind --to if it is given)."""
    rest, folder, words = [], None, iter(arguments)
    for word in words:
        if word == TO or word.startswith(f"{TO}="):
            folder = word.partition("=")[2] or next(words, "")
            if not folder or "=" in folder:
                raise ConfigError([f"{TO}: needs a folder; pass {TO} DIR"])
        else:
            rest.append(word)
    return rest, None if folder is None else expanded(folder).absolute()


class _Single:
    """The one run of this process, if it is no sweep."""

    folder: Path | None = None


class _Said:
    """What this command has told of its jobs: a cause that many points of a sweep share is told once."""

    lines: ClassVar[set[str]] = set()


def main(conf: Path = CONF) -> None:
    """Runs the command line; exits with 2 for a mistake in it or a config, with 1 for a run that failed."""
    _Said.lines.clear()
    with stoppable(_stopped):
        _main(conf)


def _stopped() -> str:
    """What to say when the command is stopped: whether it goes on, and with which folder if its own has the time in it.

    HydraConfig still has what the check of the command line composed.
    """
    kind, folder = ("run", _Single.folder) if SweepEnd.folder is None else ("sweep", SweepEnd.folder)
    if folder is None:
        return "stopped"  # nothing was begun
    here = HydraConfig.get()
    unresolved = OmegaConf.to_container(OmegaConf.create({"run": here.run, "sweep": here.sweep}), resolve=False)
    assert isinstance(unresolved, dict)
    within = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    timed = f" with hydra.{kind}.dir={within}" if "${now:" in str(unresolved[kind]["dir"]) else ""
    return f"stopped; the same command goes on{timed}"


def _main(conf: Path) -> None:
    try:
        if sys.argv[1:2] == ["inspect"]:
            inspect_command(sys.argv[2:], conf)
            return
        if sys.argv[1:2] == ["fetch"]:
            fetch_command(sys.argv[2:], conf)
            return
        if sys.argv[1:2] == ["speed"]:
            speed_command(sys.argv[2:], conf)
            return
        command = checked(sys.argv[1:], conf)
        sys.argv[1:] = command.argv
        for line in command.told:
            print(line, file=sys.stderr)
        if HydraConfig.initialized() and HydraConfig.get().runtime.choices["hydra/launcher"] == "joblib":
            spare_workers()
        if not SHOW_ALL:
            os.environ["STUN_SHORT_ERRORS"] = "1"
        os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print, so that it is told here
        with left_out_where_lacking(command.partial):
            hydra.main(version_base="1.3", config_path=str(conf), config_name=CONFIG_NAME)(job)()
    except ConfigError as error:
        count = len(error.mistakes)
        print(f"stun: {count} mistake{'s' * (count > 1)}, nothing was run", file=sys.stderr)
        print(*(f"  {line}" for line in error.mistakes), sep="\n", file=sys.stderr)
        sys.exit(2)
    except HYDRA_ERRORS as error:
        stop_if_told()
        if SHOW_ALL:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        if SweepEnd.folder is not None:  # points were run, as where a search has none to choose from
            conclude(SweepEnd.folder)
        sys.exit(2)
    except Exception as error:
        stop_if_told()
        hydras = isinstance(error, OSError) and not SHOW_ALL  # ours are told where they happen
        if SweepEnd.folder is None and not hydras:
            raise
        kind = "run" if SweepEnd.folder is None else "sweep"
        why = not_made(error, f"hydra.{kind}.dir") if isinstance(error, OSError) else one_line(error)
        print(f"error: {why}", file=sys.stderr)
        if SweepEnd.folder is not None:  # also if a launcher lost a worker: what the others did is on disk
            conclude(SweepEnd.folder)
        sys.exit(1)


def _tell(error: Exception) -> str:
    """Says why a job failed, in one line if that is the user's to mend; gives that line."""
    # An OSError names its file. Our ValueErrors are for users; a library's may be our bug and keeps its traceback.
    ours = isinstance(error, OSError | MemoryError) or (isinstance(error, ValueError) and _raised_here(error))
    if SHOW_ALL or not ours:
        traceback.print_exception(error)
    else:
        line = _in_words(error)
        print(f"error: {'the same as before' if line in _Said.lines else line}", file=sys.stderr)
        _Said.lines.add(line)
    return _in_words(error) if ours else f"{type(error).__name__}: {one_line(error)}"


def _in_words(error: Exception) -> str:
    """What an error that is the user's to mend says; the system's own say no more than a name and a number."""
    if isinstance(error, MemoryError):
        return (
            "this machine has not enough memory; lower calibration.num_sequences or calibration.batch_size, pass "
            "stream=out_of_core, or see what a run needs with stun inspect"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: cannot be read or written ({error.strerror}); see what is there, and who may use it"
    return str(error)


def _raised_here(error: Exception) -> bool:
    """Whether an error comes from our own code and not from a library that it calls."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("stun_exp")
