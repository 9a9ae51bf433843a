"""The Python API: prune a model, inspect one, and read what runs have left."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stun_exp.config.settings import RunSpec
    from stun_exp.inspection.show import ModelFacts

SOURCE = "source"
"""The folder, within a run's, in which a model that was given in memory is saved for the time of the run."""


@dataclass(frozen=True)
class Report:
    """A finished run: what it found, and where."""

    folder: Path
    content: Mapping[str, Any]
    """report.json, whole."""

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the pruned model; None if it was not kept (`save=True`, or an export, keeps it)."""
        folder = self.folder / "checkpoint"
        return folder if folder.is_dir() else None

    @property
    def sparsity(self) -> float:
        """Share of the weights in scope that is gone, as counted on disk."""
        return float(self.content["sparsity"]["achieved"])

    @property
    def metrics(self) -> dict[str, float]:
        """The value of each metric, by `task/metric,filter`."""
        return {name: float(metric["value"]) for name, metric in self.content["metrics"].items()}

    @property
    def warnings(self) -> list[str]:
        """What the run had to say of itself."""
        return list(self.content["warnings"])


@overload
def prune(
    model: "str | Path | PreTrainedModel",
    *,
    out: str | Path,
    sparsity: float | None = ...,
    tokenizer: "PreTrainedTokenizerBase | None" = ...,
    settings: Mapping[str, Any] | None = ...,
    **more: Any,
) -> Report: ...


@overload
def prune(
    model: "str | Path | PreTrainedModel",
    *,
    out: str | Path,
    sparsity: Sequence[float],
    tokenizer: "PreTrainedTokenizerBase | None" = ...,
    settings: Mapping[str, Any] | None = ...,
    **more: Any,
) -> list[Report]: ...


def prune(
    model: "str | Path | PreTrainedModel",
    *,
    out: str | Path,
    sparsity: float | Sequence[float] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> Report | list[Report]:
    """Prunes a model and measures it, as the command `stun` does, with the same checks and defaults.

    Nothing of the process is changed: no Hydra application is started, and logging is as it was. A run that was
    interrupted goes on when it is called again with the same settings; one that is complete is only read.

    Args:
        model: The name of a card (`toy_moe`, `mixtral_8x7b`), a folder, a hub repository (owner/name), or a
            transformers model in memory, which is saved in `out` for the time of the run.
        out: The folder that the run leaves its files in; it is made.
        sparsity: Share of the weights in scope that is to be gone in total. Several go through the model in one walk,
            each in a folder of its own within `out`.
        tokenizer: Of a model in memory.
        settings: Settings by their dotted names, or nested: `{"expert_pruner.ratio": 0.25}`,
            `{"calibration": {"num_sequences": 64}}`.
        **more: The same as keywords, above all choices of groups: `expert_pruner="reap"`, `eval="none"`, `save=True`.

    Returns:
        The report; a list of them for several sparsities.

    Raises:
        ConfigError: A ValueError with every mistake in the settings, a line each.
        ValueError: A setting, or what it names, cannot be used with this model; nothing was pruned, or what was is
            kept for the next start.
        OSError: A file could not be read or written.
    """
    folder = Path(out).absolute()
    given = _flat({**(settings or {}), **more})
    if sparsity is not None:
        given["sparsity"] = sparsity
    with _source(model, tokenizer, folder) as (source, save):
        specs, choices = _specs({**source, **given}, folder)
        if any(spec.settings.dry_run for spec in specs):
            raise ValueError("dry_run=True: prune() returns reports, and a dry run has none; use stun_exp.inspect()")
        save()
        run_all(specs, choices)
    reports = [read_report(spec.out) for spec in specs]
    return reports if isinstance(given.get("sparsity"), Sequence) else reports[0]


def inspect(model: str | Path, *, settings: Mapping[str, Any] | None = None, **more: Any) -> "ModelFacts":
    """What a model is, what of it fits where, and what a run will need; reads no weights.

    Args:
        model: The name of a card, a folder, or a hub repository, of which only JSON is fetched.
        settings: Of the run, as for `prune`.
        **more: The same as keywords.

    Returns:
        Sizes and needs; as text, what `stun inspect` prints.

    Raises:
        ConfigError: A ValueError with every mistake in the settings, a line each.
        ValueError: The model is of no family that is known, or not what its card says.
        OSError: The model cannot be had.
    """
    from stun_exp.inspection.show import facts_of

    specs, _ = _specs({**_named(model), **_flat({**(settings or {}), **more})}, None)
    return facts_of(specs[0].settings)


def read_report(folder: str | Path) -> Report:
    """The report that a run has left in its folder.

    Raises:
        OSError: There is none.
        ValueError: It is not one of this version.
    """
    from stun_exp.state.artifacts import REPORT, SCHEMA
    from stun_exp.utils.json_files import read_json, with_numbers

    content = read_json(Path(folder) / REPORT)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{Path(folder) / REPORT}: is no report as this version writes it; run it again")
    return Report(Path(folder), with_numbers(content))


def run_all(
    specs: "Sequence[RunSpec]",
    choices: Mapping[str, str | None] = MappingProxyType({}),
    sweep: str | None = None,
) -> list[dict[str, Any]]:
    """The reports of the runs that were not complete; all have one model, and are pruned in one walk."""
    from stun_exp.pipeline.run import run

    return run(specs, choices, sweep)


def _specs(given: Mapping[str, Any], out: Path | None) -> "tuple[list[RunSpec], dict[str, str | None]]":
    """The runs that settings ask for, and what was chosen for each group; ConfigError with every mistake."""
    from hydra.core.hydra_config import HydraConfig

    from stun_exp.cli.check import composed_of
    from stun_exp.config.build import specs_from
    from stun_exp.config.conf import CONF

    before = HydraConfig.instance().cfg
    try:
        texts = [f"{key}={value if (CONF / key).is_dir() else typed(value)}" for key, value in given.items()]
        cfg, choices = composed_of(texts, CONF, out)
        return specs_from(cfg, out or Path()), choices
    finally:
        HydraConfig.instance().cfg = before


def _flat(nested: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    escaped = str(value).replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}{chr(92) if escaped.endswith(chr(92)) else ''}'"


def _named(model: str | Path) -> dict[str, Any]:
    """The settings that choose a model: a card, or a folder or repository."""
    from stun_exp.config.conf import CONF

    if isinstance(model, str) and (CONF / "model" / f"{model}.yaml").is_file():
        return {"model": model}
    return {"model": "local", "model.path": str(model)}


@contextmanager
def _source(
    model: "str | Path | PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", out: Path
) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
    """The settings that choose a model, and what saves one in memory, in a folder that is there inside the block."""
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise ValueError("tokenizer: is for a model in memory; the one of a checkpoint is read from its folder")
        yield _named(model), lambda: None
        return
    if tokenizer is None:
        raise ValueError("tokenizer: required with a model in memory; pass the one that belongs to it")
    from shutil import rmtree

    folder, mark = out / SOURCE, out / SOURCE / ".stun_exp"
    if folder.exists() and not mark.is_file():
        raise ValueError(f"{folder}: is there, and the model is to be saved there; move it away, or choose another out")
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()

    def save() -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    try:
        yield _named(folder), save
    finally:
        rmtree(folder)
        with suppress(OSError):  # the run has left something there
            out.rmdir()
