"""The command line, checked whole before Hydra runs it: Hydra sees few mistakes and stops at the first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stun_exp.cli.composing import HYDRA_ERRORS, PARAMS, UNNAMED, Composed, composed, configs, one_line
from stun_exp.cli.dense import without_experts_
from stun_exp.cli.jobs import NO_SWEEP, Jobs, Sweep, is_hydras
from stun_exp.cli.overrides import Argument, ConfigGroups, parsed_override, read
from stun_exp.cli.partial_settings import ADDED, Lacks, PartialSetting, partial_settings
from stun_exp.config.build import ConfigError, build
from stun_exp.config.settings import Settings
from stun_exp.utils.paths import is_folder


class Command(NamedTuple):
    """A command line that has been checked."""

    argv: list[str]
    """For Hydra to run: the same, with globs over choices written out, and what names a sweep's folders."""
    partial: Sequence[PartialSetting] = ()
    """What it sets in some points of a sweep and others lack; Hydra is given it to add."""
    told: Sequence[str] = ()
    """What the user should know of it, a line each."""


def check(argv: Sequence[str], conf: Path, writes: bool = True) -> list[str]:
    """`argv` for Hydra to run. Raises ConfigError with every mistake."""
    return checked(argv, conf, writes).argv


def checked(argv: Sequence[str], conf: Path, writes: bool = True) -> Command:
    """`argv` as it is to be run, and what is to be known of it.

    Raises ConfigError with every mistake. Each value of a sweep is tried on top of the first value of the others, and
    then, of a sweep that is not too large, each combination. What cannot be judged here is left to Hydra. A command
    that `writes` needs a folder.
    """
    args = get_args_parser().parse_args(argv)
    if args.config_path or args.config_name:
        flag = "--config-path" if args.config_path else "--config-name"
        raise ConfigError([f"{flag}: there is one config; --config-dir=DIR adds the choices in a folder to it"])
    if args.config_dir and not is_folder(args.config_dir):
        raise ConfigError([f"--config-dir={args.config_dir}: no such folder; give one with folders like conf/ has"])
    if any((args.help, args.hydra_help, args.info, args.shell_completion, args.experimental_rerun)):
        return Command(list(argv))
    with configs(conf, args.config_dir):
        groups = ConfigGroups(GlobalHydra.instance().config_loader(), args.overrides)
        typed, mistakes = read(args.overrides, groups)
        compose_cached = cache(composed)
        first = _first(typed, compose_cached, mistakes)
        sweep = None
        if args.multirun or first.mode == RunMode.MULTIRUN:
            sweep, wrong = _sweep_of(typed, first, groups, compose_cached)
            mistakes += wrong
        else:
            mistakes += _needing_multirun(typed, {} if args.cfg else first.sweep)
            typed = [replace(argument, texts=argument.texts[:1]) for argument in typed]
        names_only = args.cfg is not None
        jobs = Jobs(typed, sweep or NO_SWEEP, first.sweep, groups, compose_cached, names_only, sweep is None, writes)
        mistakes += jobs.mistakes()
    if mistakes:
        raise ConfigError(mistakes)
    return Command(list(argv)) if sweep is None else _command(argv, typed, first, sweep)


def _first(typed: list[Argument], compose: Callable[[tuple[str, ...]], Composed], mistakes: list[str]) -> Composed:
    """What the first values of all arguments compose; ConfigError, after `mistakes`, if Hydra cannot."""
    try:
        return compose(tuple(a.texts[0] for a in typed if a.composes and a.texts))
    except MissingConfigException as error:
        if error.missing_cfg_file != "hydra/sweeper/optuna":  # what hydra/sweeper=search is made of
            raise ConfigError([*mistakes, one_line(error)]) from error
        no_plugin = "hydra/sweeper=search: its plugin is not installed; pip install 'stun-exp[optuna]'"
        raise ConfigError([*mistakes, no_plugin]) from error
    except HYDRA_ERRORS as error:
        raise ConfigError([*mistakes, one_line(error)]) from error


def _sweep_of(
    typed: list[Argument], first: Composed, groups: ConfigGroups, compose: Callable[[tuple[str, ...]], Composed]
) -> tuple[Sweep, list[str]]:
    """(What a sweep is beside what was typed, its mistakes that show in that)."""
    # what is typed beats what the sweep's file says
    texts = [f"{key}={value}" for key, value in first.sweep.items() if key not in {a.key for a in typed}]
    added, mistakes = read(texts, groups)
    arguments = [*typed, *added]
    unnamed = [*first.unnamed, *_alike(arguments, first.sweep, first.unnamed)]
    partial = partial_settings(arguments, compose, groups.names)
    return Sweep(added, unnamed, partial), [*mistakes, *_needing_plugin(**first.launcher)]


def _command(argv: Sequence[str], typed: list[Argument], first: Composed, sweep: Sweep) -> Command:
    """The command of a sweep without mistakes."""
    keys = sweep.partial_keys
    added, typed = ([_added_by_hydra(a) if a.key in keys else a for a in those] for those in (sweep.added, typed))
    more = [] if sweep.unnamed == first.unnamed else [f"{UNNAMED}=[{','.join(sweep.unnamed)}]"]
    if keys & first.sweep.keys():
        # Hydra would sweep over these too, beside what is to be added in their place.
        added, more = [replace(a, rewritten=a.rewritten or a.given) for a in added], [*more, f"{PARAMS}=null"]
    told = [_told(setting, lacks) for setting, lacks in sweep.partial]
    return Command(_written_out(argv, typed, added, more), [setting for setting, _ in sweep.partial], told)


def _added_by_hydra(argument: Argument) -> Argument:
    return replace(argument, rewritten=f"{ADDED}{argument.given}")


def _told(setting: PartialSetting, lacks: Lacks) -> str:
    """What to say of a setting that some points lack, and of those that are the same without it."""
    line = setting.without_effect(lacks)
    if not parsed_override(setting.given).is_sweep_override():
        return line
    return f"{line}; points that differ in nothing else are one, and run once"


def settings_of(overrides: Sequence[str], conf: Path) -> Settings:
    """The settings of the one run that `overrides` describe; ConfigError with every mistake."""
    flags = [argument for argument in overrides if argument.startswith("-")]
    if flags:
        raise ConfigError(f"{flag}: only settings, KEY=VALUE, can be given here; flags are for runs" for flag in flags)
    check(overrides, conf, writes=False)
    with initialize_config_dir(str(conf), version_base="1.3", job_name="stun"):
        found = composed(tuple(overrides)).cfg
        without_experts_(found, overrides)
        return build(found)


def composed_of(overrides: Sequence[str], conf: Path, out: Path | None) -> tuple[DictConfig, dict[str, str | None]]:
    """The checked config that `overrides` describe, and what is chosen for each group.

    ConfigError with every mistake; of the folder `out` too, unless nothing is to be written.
    """
    folder = [] if out is None else [f"hydra.run.dir='{out}'"]
    check([*overrides, *folder], conf, writes=out is not None)
    with initialize_config_dir(str(conf), version_base="1.3", job_name="stun"):
        found = composed(tuple(overrides))
        without_experts_(found.cfg, overrides)
        OmegaConf.resolve(found.cfg)
        return found.cfg, {str(group): choice for group, choice in HydraConfig.get().runtime.choices.items()}


def _alike(arguments: list[Argument], params: dict[str, Any], unnamed: list[str]) -> list[str]:
    """The settings that are the same in all of a sweep's runs; none if nothing differs, and names would be empty.

    Those of the sweep's file name folders even if one value was typed, so that it goes on with the others.
    """
    swept = {parsed_override(argument.given).key_or_group for argument in arguments if argument.sweeps}
    if not (differ := (swept | params.keys()) - set(unnamed)):
        return []
    keys = [parsed_override(argument.given).key_or_group for argument in arguments if not is_hydras(argument)]
    return [key for key in dict.fromkeys(keys) if key not in {*differ, *unnamed}]


def _once(setting: PartialSetting) -> str:
    """What becomes of points that differ in nothing but a setting without effect."""
    return "; there, its values make one point" if parsed_override(setting.given).is_sweep_override() else ""


def _needing_multirun(arguments: list[Argument], params: dict[str, Any]) -> Iterator[str]:
    """The mistakes of a sweep that was not asked for with -m; a grid all of whose settings are typed is one run."""
    typed = {argument.key for argument in arguments}
    if left := [f"{key}={value}" for key, value in params.items() if key not in typed]:
        yield f"{' '.join(left)}: the config is a sweep; pass -m to run it, or one value for each of these"
    for argument in arguments:
        if argument.sweeps:
            a_list = "" if argument.composes else f", or write a list as {argument.key}=[A,B]"
            yield f"{argument.given}: several values; pass -m to sweep over them{a_list}"


def _needing_plugin(choice: str, target: str) -> Iterator[str]:
    """The mistake of a launcher whose plugin for Hydra is not installed."""
    installed = {f"{launcher.__module__}.{launcher.__qualname__}" for launcher in Plugins.instance().discover(Launcher)}
    if target not in installed:
        yield f"hydra/launcher={choice}: its plugin is not installed; pip install 'stun-exp[{choice}]'"


def _written_out(argv: Sequence[str], typed: list[Argument], added: list[Argument], more: Sequence[str]) -> list[str]:
    """`argv` with its globs written out, and those of the sweep's file, which what is typed overrides; and `more`."""
    rewritten = {argument.given: argument.rewritten for argument in typed if argument.rewritten}
    last = max((i for i, arg in enumerate(argv) if arg in {a.given for a in typed}), default=len(argv) - 1)
    # beside the other overrides: argparse wants them in one row
    result = [*argv[: last + 1], *(a.rewritten for a in added if a.rewritten), *more, *argv[last + 1 :]]
    return [rewritten.get(arg, arg) for arg in result]
