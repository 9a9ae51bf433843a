"""Figures from report.json files alone: each one that the reports have the numbers for, as PNG and as SVG."""

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from stun_exp.report.data.metrics import headlines
from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.data.studies import Study, studies
from stun_exp.report.figures import by_benchmark, by_model, by_setting, by_stage
from stun_exp.report.figures import style as drawing
from stun_exp.report.figures.measures import Quality, over_benchmarks
from stun_exp.report.figures.spec import FigureSpec


@dataclass(frozen=True)
class Figure:
    """A figure, and what to say beside it: what its error bars are, and what was left out of it."""

    title: str
    caption: str
    name: str
    """Of its files, in a report's folder, without an ending."""
    png: bytes
    svg: str


def draw_figures(reports: Sequence[RunReport], folder: str) -> list[Figure]:
    """The figures, in the order to show them, each model's its own.

    Args:
        reports: Of runs that may stand in one table.
        folder: Where in a report they are to lie.

    Raises:
        ValueError: Two runs are the same but for what moves no figure.
    """
    found = studies(reports)
    specs = (
        replace(spec, stem=f"{study.model}-{spec.stem}", title=f"{spec.title}, {study.model}")
        if len(found) > 1
        else spec
        for study in found
        for spec in _specs(study, _qualities(reports))
    )
    return _drawn(specs, folder)


def draw_figures_over_models(reports: Sequence[RunReport], folder: str) -> list[Figure]:
    """The figures that have all models in them; arguments and errors as for those of one."""
    found = [study for study in studies(reports) if study.points]
    qualities = _qualities(reports)
    overall = over_benchmarks(qualities)
    measures = [overall, *(quality for quality in qualities if quality != overall)] if overall else []
    beside = [spec for measure in measures for spec in by_model.side_by_side(found, measure)]
    return _drawn(beside or (spec for quality in qualities for spec in by_model.by_experts(found, quality)), folder)


def _qualities(reports: Sequence[RunReport]) -> list[Quality]:
    return [Quality(key, task) for key, task in headlines(reports).items()]


def _drawn(specs: Iterable[FigureSpec], folder: str) -> list[Figure]:
    figures: dict[str, Figure] = {}
    with drawing.style():
        for spec in specs:
            stem = _file_name(spec.stem, figures)
            png, svg = drawing.rendered(spec.draw(spec.title))
            figures[stem] = Figure(spec.title, " ".join(spec.said), f"{folder}/{stem}", png, svg)
    return list(figures.values())


def _specs(study: Study, qualities: Sequence[Quality]) -> Iterator[FigureSpec]:
    if not study.points:
        return
    kinds = (
        by_benchmark.by_sparsity,
        by_benchmark.by_share,
        by_setting.ablation,
        by_benchmark.ranking,
    )
    for of_a_benchmark in kinds:
        for quality in qualities:
            yield from of_a_benchmark(study, quality)
    yield from by_stage.cost(study, qualities)
    yield from by_stage.kept(study)
    yield from by_stage.error_by_layer(study)
    yield from by_stage.kurtosis(study)


def _file_name(text: str, taken: Container[str]) -> str:
    """A name that every file system takes."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "figure"
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}-{number}", number + 1
    return name
