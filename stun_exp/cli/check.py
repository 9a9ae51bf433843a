"""The command line, checked whole before Hydra runs it: Hydra sees few mistakes and stops at the first."""

import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from stun_exp.cli.composing import UNNAMED, Composed, composed, configs
from stun_exp.cli.naming import folder_name
from stun_exp.cli.overrides import Argument, ConfigGroups, parsed_override, read
from stun_exp.cli.places import folder_refusal, other_run, taken
from stun_exp.config.build import ConfigError, build
from stun_exp.config.errors import did_you_mean, dotted, no_such, shown
from stun_exp.config.settings import Settings, specs_of
from stun_exp.utils.paths import is_folder

MOST_CONFIGS, MOST_JOBS = 64, 1000
"""A config takes a tenth of a second to compose, a job with other values a hundredth to check."""

# What Hydra raises for a reason that is the user's.
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)


def check(argv: Sequence[str], conf: Path, writes: bool = True) -> list[str]:
    """`argv` for Hydra to run: the same, with globs over choices written out, and what names a sweep's folders.

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
        return list(argv)
    with configs(conf, args.config_dir):
        groups = ConfigGroups(GlobalHydra.instance().config_loader(), args.overrides)
        typed, mistakes = read(args.overrides, groups)
        compose_cached = cache(composed)
        try:
            first = compose_cached(_composing(typed))
        except MissingConfigException as error:
            if error.missing_cfg_file != "hydra/sweeper/optuna":  # what hydra/sweeper=search is made of
                raise ConfigError([*mistakes, one_line(error)]) from error
            no_plugin = "hydra/sweeper=search: its plugin is not installed; pip install 'stun-exp[optuna]'"
            raise ConfigError([*mistakes, no_plugin]) from error
        except HYDRA_ERRORS as error:
            raise ConfigError([*mistakes, one_line(error)]) from error
        added: list[Argument] = []
        params, unnamed = first.sweep, None
        if args.multirun or first.mode == RunMode.MULTIRUN:
            # what is typed beats what the sweep's file says
            texts = [f"{key}={value}" for key, value in params.items() if key not in {a.key for a in typed}]
            added, wrong = read(texts, groups)
            mistakes += [*wrong, *_needing_plugin(**first.launcher)]
            unnamed = [*first.unnamed, *_alike([*typed, *added], params, first.unnamed)]
        else:
            mistakes += _needing_multirun(typed, {} if args.cfg else params)
            typed = [replace(argument, texts=argument.texts[:1]) for argument in typed]
        jobs = _Jobs([*typed, *added], params, groups, compose_cached, args.cfg is not None, unnamed, writes)
        mistakes += jobs.mistakes()
    if mistakes:
        raise ConfigError(mistakes)
    naming = [] if unnamed in (None, first.unnamed) else [f"{UNNAMED}=[{','.join(unnamed)}]"]
    return _written_out(argv, typed, added, naming)


def settings_of(overrides: Sequence[str], conf: Path) -> Settings:
    """The settings of the one run that `overrides` describe; ConfigError with every mistake."""
    flags = [argument for argument in overrides if argument.startswith("-")]
    if flags:
        raise ConfigError(f"{flag}: only settings, KEY=VALUE, can be given here; flags are for runs" for flag in flags)
    check(overrides, conf, writes=False)
    with initialize_config_dir(str(conf), version_base="1.3", job_name="stun"):
        return build(composed(tuple(overrides)).cfg)


def composed_of(overrides: Sequence[str], conf: Path, out: Path | None) -> tuple[DictConfig, dict[str, str | None]]:
    """The checked config that `overrides` describe, and what is chosen for each group.

    ConfigError with every mistake; of the folder `out` too, unless nothing is to be written.
    """
    folder = [] if out is None else [f"hydra.run.dir='{out}'"]
    check([*overrides, *folder], conf, writes=out is not None)
    with initialize_config_dir(str(conf), version_base="1.3", job_name="stun"):
        found = composed(tuple(overrides))
        OmegaConf.resolve(found.cfg)
        return found.cfg, {str(group): choice for group, choice in found.hydra.hydra.runtime.choices.items()}


def one_line(error: Exception) -> str:
    """What an error of Hydra's says, with its cause, on one line."""
    parts = [str(e).strip() for e in (error, error.__cause__) if e is not None and str(e).strip()]
    return "; ".join(" ".join(part.split()) for part in parts) or type(error).__name__


def _alike(arguments: list[Argument], params: dict[str, Any], unnamed: list[str]) -> list[str]:
    """The settings that are the same in all of a sweep's runs; none if nothing differs, and names would be empty.

    Those of the sweep's file name folders even if one value was typed, so that it goes on with the others.
    """
    swept = {parsed_override(argument.given).key_or_group for argument in arguments if argument.sweeps}
    if not (differ := (swept | params.keys()) - set(unnamed)):
        return []
    keys = [parsed_override(argument.given).key_or_group for argument in arguments if not _is_hydras(argument)]
    return [key for key in dict.fromkeys(keys) if key not in {*differ, *unnamed}]


def _is_hydras(argument: Argument) -> bool:
    return re.split("[./]", argument.key.lstrip("+~"))[0] == "hydra"


def _composing(arguments: list[Argument]) -> tuple[str, ...]:
    return tuple(a.texts[0] for a in arguments if a.composes and a.texts)


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


@dataclass(frozen=True)
class _Jobs:
    """The jobs that arguments ask for, composed and built to see what is wrong with them."""

    arguments: list[Argument]
    params: dict[str, Any]
    groups: ConfigGroups
    composed: Callable[[tuple[str, ...]], Composed]
    names_only: bool  # `--cfg` shows a config whatever its values
    unnamed: list[str] | None  # settings that do not name a sweep's folders; None if this is none
    writes: bool  # whether its folders matter

    def mistakes(self) -> Iterator[str]:
        """The mistakes of the first job, those that each further value of a sweep adds, or those of combinations."""
        arguments = [argument for argument in self.arguments if argument.texts]
        first = [argument.texts[0] for argument in arguments]
        said = list(self._of(arguments, first))
        yield from said
        in_all = set(said)
        for i, argument in enumerate(arguments):
            for text in argument.texts[1:]:
                for line in self._of(arguments, [*first[:i], text, *first[i + 1 :]]):
                    if line not in in_all:
                        said.append(line)
                        typed = text.replace("\\", "")  # Hydra escapes some characters of what it reads
                        yield line if line.startswith(typed) else f"{line} (in the job with {typed})"
        configs = prod(len(argument.texts) for argument in arguments if argument.composes)
        if said or configs > MOST_CONFIGS or prod(len(argument.texts) for argument in arguments) > MOST_JOBS:
            return
        for job in product(*(argument.texts for argument in arguments)):
            for line in self._of(arguments, list(job)):
                if line not in said:
                    said.append(line)
                    swept = [text for text, argument in zip(job, arguments, strict=True) if len(argument.texts) > 1]
                    yield f"{line} (in the job with {' '.join(swept)})"

    def _of(self, arguments: list[Argument], job: list[str]) -> Iterator[str]:
        """The mistakes of one job: its names, then, with the wrong ones left out, its values."""
        try:
            composed = self.composed(tuple(t for t, a in zip(job, arguments, strict=True) if a.composes))
        except HYDRA_ERRORS as error:
            yield one_line(error)
            return
        if composed.sweep != self.params:
            yield "a sweep cannot be swept over, Hydra would ignore it; run one at a time"
        cfg, unknown = deepcopy(composed.cfg), self._unknown()
        plain = OmegaConf.to_container(cfg)
        names = _names(plain) | self.groups.names
        for text, argument in zip(job, arguments, strict=True):
            key = argument.key.replace("[", ".").replace("]", "")
            if argument.composes or key.partition(".")[0] in unknown:
                continue
            if key not in names:
                yield f"{argument.key}: {_no_such_setting(plain, key, names)}"
                continue
            try:
                OmegaConf.update(cfg, argument.key, parsed_override(text).value())
            except HYDRA_ERRORS as error:
                yield f"{text}: {one_line(error)}"
        if self.names_only:
            return
        out = self._folder(composed, arguments, job) if self.writes else None
        if out is not None and (why := folder_refusal(out)):
            yield f"{self._place(composed)}: {why}"
        try:
            settings = build(cfg, unknown)
        except ConfigError as error:
            yield from error.mistakes
        else:
            named = self.unnamed is not None and composed.names_folders
            if named and out is not None and not unknown and is_folder(out):
                yield from _of_others(settings, cfg, composed, out)

    def _place(self, composed: Composed) -> str:
        """The setting that says where runs are, and its value."""
        kind, value = ("run", composed.run_dir) if self.unnamed is None else ("sweep", composed.sweep_dir)
        text = str(value)
        return f"hydra.{kind}.dir={shown(text)}"

    def _folder(self, composed: Composed, arguments: list[Argument], job: list[str]) -> str | None:
        """Where a job's run is to be; None where only Hydra will know."""
        if self.unnamed is None:
            return composed.run_dir
        if composed.sweep_dir is None or not composed.names_folders:
            return composed.sweep_dir
        own = [text for text, argument in zip(job, arguments, strict=True) if not _is_hydras(argument)]
        return f"{composed.sweep_dir}/{folder_name(own, self.unnamed)}"

    def _unknown(self) -> set[str]:
        """The settings given by groups whose choice is wrong and nobody can guess."""
        riddles = {argument.key for argument in self.arguments if not argument.texts}
        if riddles <= Settings.model_fields.keys():
            return riddles
        # an experiment may give anything but what is typed
        return Settings.model_fields.keys() - {a.key for a in self.arguments if not a.composes}


def _of_others(settings: Settings, cfg: DictConfig, composed: Composed, out: str) -> Iterator[str]:
    """The mistake of a sweep into the folders of another, with other settings."""
    HydraConfig.instance().set_config(composed.hydra)  # another job's may have been composed since
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for point in specs_of(settings, {str(key): value for key, value in plain.items()}, Path(out)):
        if differs := other_run(point.out, point.config):
            yield taken(str(composed.sweep_dir), differs)


def _names(data: Any, path: str = "") -> set[str]:
    """Every setting in `data` by its dotted name."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    named = [(dotted(path, key), value) for key, value in inside]
    return {name for name, _ in named} | {n for name, value in named for n in _names(value, name)}


def _no_such_setting(plain: Any, key: str, names: set[str]) -> str:
    """`no such setting; did you mean ...?`, or how to add one where settings can be added."""
    *folders, _ = key.split(".")
    for folder in folders:
        plain = plain.get(folder) if isinstance(plain, dict) else None
    if folders and isinstance(plain, dict) and "_target_" not in plain:
        near = did_you_mean(key, [dotted(*folders, name) for name in plain])
        return f"no such setting; {f'did you mean {near}, or ' if near else ''}+{key}=VALUE to add it?"
    return no_such("setting", key, sorted(name for name in names if not name.endswith("_target_")))
