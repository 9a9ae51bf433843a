"""`stun speed`: what pruning is worth in use, of runs beside their unpruned models, or of models beside each other."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import initialize_config_dir
from omegaconf import OmegaConf

from stun_exp.api import Report, read_report, typed
from stun_exp.cli.check import check
from stun_exp.cli.composing import composed
from stun_exp.config.build import ConfigError, build
from stun_exp.config.settings import Settings
from stun_exp.state.artifacts import JOURNAL, REPORT

if TYPE_CHECKING:
    from stun_exp.checkpoint.checkpoint import Checkpoint
    from stun_exp.report.tables.table import ResultsTable

HELP = """stun speed measures what pruning is worth in use: bytes, experts hit, tokens a second.

All models are held in memory at the same time and measured in turns. The first is what the others are compared with.

  stun speed RUN ... KEY=VALUE ...       the checkpoints of runs, beside the unpruned model that their reports name
  stun speed MODEL ... KEY=VALUE ...     checkpoint folders, cards or hub repositories

Settings are those of a run: inference.batch_sizes=[1,8], inference.new_tokens=64, inference.vllm_python=PATH,
model.device=cpu. Prompts are text of the run's calibration, or of calibration=CHOICE.

Examples:

  stun speed runs/x
  stun speed runs/x inference.vllm_python=vllm/bin/python
  stun speed bundled:toy_upcycled DIR calibration=toy
"""
TEXT = ("model", "calibration")
"""Groups that a run's report answers for it, where nothing else is chosen."""


def tables_of(words: Sequence[str], conf: Path) -> "Iterator[ResultsTable]":
    """What was measured of the runs or models among the words; the other words are settings.

    Raises:
        ConfigError: A mistake in the settings.
        ValueError: A place is no run with a checkpoint, and no model, or the models do not belong together.
        OSError: A place is not there.
    """
    places = [word for word in words if is_place(word)]
    overrides = [word for word in words if not is_place(word)]
    if not places:
        raise ConfigError(["no run and no model given; pass a run's folder, or models: stun speed runs/x"])
    settings, checkpoints = subjects(places, overrides, conf)
    from stun_exp.report.tables.inference import comparison_table, kernels_table

    block = measured(settings, checkpoints)
    yield comparison_table(block)
    if (kernels := kernels_table(block)) is not None:
        yield kernels


def is_place(word: str) -> bool:
    """Whether a word names a run or a model, and no setting; a run of a sweep has = in its folder's name."""
    with suppress(OSError):  # a name that is too long for a file
        if Path(word).exists():
            return True
    return "=" not in word and not word.startswith("-")


def subjects(places: Sequence[str], overrides: Sequence[str], conf: Path) -> "tuple[Settings, dict[str, Checkpoint]]":
    """The settings of the first place, and all models by name; those that runs were made of come first."""
    found = [_subject(place, overrides, conf) for place in places]
    unpruned, others = {}, {}
    for place, (settings, run) in zip(places, found, strict=True):
        if run is not None:
            unpruned[settings.model.path] = settings.model.open()
        several = len(places) > 1
        name = "pruned" if run is not None and not several else place
        others[name] = settings.model.open() if run is None else settings.model.written(run)
    named = {"unpruned" if len(unpruned) == 1 else source: one for source, one in unpruned.items()}
    return found[0][0], named | others


def _subject(place: str, overrides: Sequence[str], conf: Path) -> tuple[Settings, Path | None]:
    """The settings with which a place is measured, and the checkpoint's folder if it is a run."""
    folder = Path(place)
    if (folder / REPORT).is_file() or (folder / JOURNAL).is_file():
        return _settings_of_run(_finished(folder), overrides, conf), folder / "checkpoint"
    card = (conf / "model" / f"{place}.yaml").is_file() and not folder.exists()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{place}: neither a run (no {REPORT}) nor a model (no config.json); give a run's folder, one of a "
            "sweep's, or the folder of a checkpoint"
        )
    chosen = [f"model={place}"] if card else ["model=local", f"model.path={typed(place)}"]
    return _settings([*chosen, *overrides], {}, conf), None


def _finished(run: Path) -> Report:
    """A run's report; ValueError if it has none, or kept no checkpoint."""
    if not (run / REPORT).is_file():
        raise ValueError(f"{run}: the run is not finished; its command, given again, goes on with it")
    report = read_report(run)
    if report.checkpoint is None:
        raise ValueError(
            f"{run}: the run kept no checkpoint (save=false); run it again with save=true, which keeps it, or with "
            "inference=measure, which measures it before it goes"
        )
    return report


def _settings_of_run(report: Report, overrides: Sequence[str], conf: Path) -> Settings:
    """The settings, with the run's own model and text where the overrides choose no others."""
    chosen = {override.partition("=")[0] for override in overrides}
    return _settings(overrides, {key: report.content["settings"][key] for key in TEXT if key not in chosen}, conf)


def _settings(overrides: Sequence[str], own: Mapping[str, Any], conf: Path) -> Settings:
    """The settings that overrides describe, groups of `own` in the place of theirs; ConfigError with every mistake."""
    words = ["inference=measure", "name=speed", *overrides]
    check(words, conf, writes=False)
    with initialize_config_dir(str(conf), version_base="1.3", job_name="stun"):
        cfg = composed(tuple(words)).cfg
        for group, values in own.items():
            typed_here = {key: cfg[group][key] for key in _keys(overrides, group)}
            cfg[group] = OmegaConf.create({**values, **typed_here})
        return build(cfg)


def _keys(overrides: Sequence[str], group: str) -> list[str]:
    """The settings of a group that are among the overrides."""
    names = [override.partition("=")[0].partition(".") for override in overrides]
    return [key for part, _, key in names if part == group and key]


def measured(settings: Settings, checkpoints: "Mapping[str, Checkpoint]") -> dict[str, Any]:
    """The models side by side, on as much text of the calibration as is read; as a report's `inference`."""
    from stun_exp.calibration.protocol import decoder_start
    from stun_exp.inference.measure import MeasureInference
    from stun_exp.inference.protocol import Compared
    from stun_exp.pipeline.preflight import load_tokenizer

    inference, first = settings.inference, next(iter(checkpoints.values()))
    if not isinstance(inference, MeasureInference):
        raise ConfigError(["inference: measures nothing; leave it out, or pass inference=measure"])
    read = {"num_sequences": max(inference.batch_sizes), "sequence_length": inference.prompt_tokens}
    calibration = settings.calibration.model_copy(update=read)
    tokenizer = load_tokenizer(first, settings.model.trust_remote_code)
    tokens = calibration.tokens(tokenizer, settings.seed, decoder_start(first.config))
    device, nf4 = settings.model.torch_device(), settings.model.load == "nf4"
    return asdict(inference.measure(Compared(checkpoints, tokens.batches_BT, device, nf4)))
