"""Figures from report.json files alone: each one that the reports have the numbers for, as PNG and as SVG."""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stun_exp.report import benchmark_sketches, drawing, stage_sketches
from stun_exp.report.points import Report
from stun_exp.report.sketches import Quality, Sketch
from stun_exp.report.studies import Study, studies
from stun_exp.report.tables import headlines


@dataclass(frozen=True)
class Figure:
    """A figure on disk, and what to say beside it: what its error bars are, and what was left out of it."""

    title: str
    caption: str
    png: Path
    svg: Path


def write_figures(reports: Sequence[Report], folder: Path) -> list[Figure]:
    """The figures that were written into a folder, in the order to show them; each model has figures of its own.

    ValueError if two runs are the same (`points`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = studies(reports)
    qualities = [Quality(key, task) for key, task in headlines(reports).items()]
    figures: dict[str, Figure] = {}
    with drawing.style():
        for study in found:
            several = len(found) > 1
            for sketch in _sketches(study, qualities):
                title = f"{sketch.title}, {study.model}" if several else sketch.title
                stem = _file_name(f"{study.model}-{sketch.stem}" if several else sketch.stem, figures)
                png, svg = drawing.save(sketch.draw(title), folder / stem)
                figures[stem] = Figure(title, " ".join(sketch.said), png, svg)
    return list(figures.values())


def _sketches(study: Study, qualities: Sequence[Quality]) -> Iterator[Sketch]:
    if not study.points:
        return
    kinds = (
        benchmark_sketches.by_sparsity,
        benchmark_sketches.by_share,
        benchmark_sketches.ablation,
        benchmark_sketches.ranking,
    )
    for of_a_benchmark in kinds:
        for quality in qualities:
            yield from of_a_benchmark(study, quality)
    yield from stage_sketches.cost(study, qualities)
    yield from stage_sketches.kept(study)
    yield from stage_sketches.kurtosis(study)


def _file_name(text: str, taken: Container[str]) -> str:
    """A name that every file system takes."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80]
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}-{number}", number + 1
    return name
