"""The command `stun-report`: tables, figures and one page from the reports of runs and sweeps."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stun_exp.report.conclusion import conclusion
from stun_exp.report.data.comparable import ComparableSet, comparable_sets
from stun_exp.report.data.differences import unequal
from stun_exp.report.data.facts import facts, shared_settings
from stun_exp.report.data.failures import failures
from stun_exp.report.data.plans import in_words, planned_runs
from stun_exp.report.data.read import read_runs
from stun_exp.report.figures import draw
from stun_exp.report.page import Section, page
from stun_exp.report.tables.domains import domains_table
from stun_exp.report.tables.formats import comma_separated, latex
from stun_exp.report.tables.inference import inference_table
from stun_exp.report.tables.plans import equal_plans_note, plans_table
from stun_exp.report.tables.published import published_table, verdict_text, with_verdict
from stun_exp.report.tables.results import results_table
from stun_exp.report.tables.significance import PairedTests, paired_tests, significance_table
from stun_exp.report.tables.table import ResultsTable, show_text
from stun_exp.report.written import INDEX_PAGE, write_files
from stun_exp.utils import markdown
from stun_exp.utils.names import shortened

OVER_MODELS = "models"
"""The folder of figures that have several models in them."""
FILE_NAME_BYTES = 120
"""Of a file's name, without what is added to it."""
DESCRIPTION = """Reads the report.json files of runs and sweeps. Writes their tables (Markdown, LaTeX, CSV), paired
tests, a comparison with published figures, figures (PNG, SVG), and index.html, one page with all of it. Runs that
cannot be compared are refused, and what differs is named."""


@dataclass(frozen=True)
class Part:
    """One table of a report: what to call its file, its heading, and what is said above it."""

    name: str
    heading: str
    text: str
    table: ResultsTable
    printed: ResultsTable | None = None
    """What of it is printed."""


def main() -> None:
    """Runs the command line; exits with 2 if there is nothing to read, or if runs cannot be compared."""
    parser = argparse.ArgumentParser(prog="stun-report", description=DESCRIPTION)
    parser.add_argument(
        "places", type=Path, nargs="+", metavar="DIR", help="a sweep, a run, or a .json list of reports"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write; by default DIR/report")
    arguments = parser.parse_args()
    try:
        written = write_report(arguments.places, arguments.out or default_out(arguments.places[0]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"report: {written}")
    if count := sum(len(failures(place)) for place in arguments.places):
        print(f"runs without a report: {count}; the page says why, under Failed", file=sys.stderr)


def default_out(place: Path) -> Path:
    """`report` in a folder, or beside a list of reports, with its name."""
    return place.with_name(f"{place.stem}_report") if place.suffix == ".json" else place / "report"


def write_report(places: Sequence[Path], out: Path) -> Path:
    """The page, written with all else into `out`; prints results, what could be compared, and what was passed over.

    Args:
        places: Sweeps, runs, and .json lists of reports.
        out: The report's folder; nothing is written into it if something is raised.

    Raises:
        FileNotFoundError: A place is not there.
        ValueError: There is no report, or runs cannot be compared, or something that is not a report's lies in `out`
            and would have to give way.
    """
    found = read_runs(places)
    for line in found.skipped:
        print(f"skipped {line}", file=sys.stderr)
    sets = comparable_sets(found.runs)
    parts, told = [], []
    for one, name in zip(sets, _names(sets), strict=True):
        tests = paired_tests(one.reports, [run.folder for run in one.runs])
        parts.append(list(_parts(one, name, tests)))
        told += [
            f"{one.heading}: {text}" if len(sets) > 1 else text for text in conclusion(one.reports, tests.p_values)
        ]
    sections = [Section("Conclusion", "\n\n".join(told))]
    for one, (results, *others) in zip(sets, parts, strict=True):
        for part in (results, *others):
            if part.printed is not None:
                part.printed.show()
        figures = draw.draw_figures(one.reports, f"figures/{results.name}")
        common = (facts(one.runs), shared_settings(one.reports))
        sections.append(Section(results.heading, results.text, [results.table], figures, *common))
        sections += [Section(part.heading, part.text, [part.table]) for part in others]
    show_text(told)
    sections += _over_models(sets, f"figures/{OVER_MODELS}")
    if found.skipped:
        sections.append(Section("Skipped", "\n\n".join(found.skipped)))
    if failed := [f"{place / run}: {why}" for place in places for run, why in failures(place).items()]:
        sections.append(Section("Failed", "\n\n".join(["Runs without a report:", *failed])))
    title = ", ".join(place.resolve().stem for place in places)
    write_files(out, _files(title, sections, [part for of_set in parts for part in of_set]))
    return out / INDEX_PAGE


def _files(title: str, sections: Sequence[Section], parts: Sequence[Part]) -> dict[str, bytes]:
    """The content of each file of a report, by its name in the report's folder."""
    texts = {INDEX_PAGE: page(title, sections), "report.md": _markdown(title, sections)}
    for part in parts:
        text = {"md": part.table.markdown(), "tex": latex(part.table, part.heading), "csv": comma_separated(part.table)}
        texts |= {f"tables/{part.name}.{ending}": content for ending, content in text.items()}
    figures = [figure for section in sections for figure in section.figures]
    texts |= {f"{figure.name}.svg": figure.svg for figure in figures}
    return {name: text.encode() for name, text in texts.items()} | {f"{one.name}.png": one.png for one in figures}


def _parts(one: ComparableSet, name: str, tests: PairedTests) -> Iterator[Part]:
    """The tables of one set: results, plans, domains, speed and memory in use, paired tests, published figures."""
    count = len(one.runs)
    text = f"{count} run{'s' * (count > 1)}. What differs among them is the seed, or has a column."
    if one.repeated:
        text += f" Left out, because they repeat another: {', '.join(one.repeated)}."
    results = results_table(one.reports, tests.p_values)
    planned, measured = planned_runs(one.runs), any(report["metrics"] for report in one.reports)
    marked = [note for note in [equal_plans_note(planned)] if note and measured]
    results = replace(results, notes=(*results.notes, *marked, *one.notes))
    yield Part(name, one.heading, text, results, results)
    if len(planned) > 1:
        text, plans = in_words(planned), plans_table(planned)
        printed = None if measured else replace(plans, notes=(text, *plans.notes))
        yield Part(f"{name}-plans", f"{one.heading}: plans", text, plans, printed)
    served = domains_table(planned)
    if served is not None:
        text = "Which sources of the calibration text the removed experts served, in the unpruned model."
        yield Part(f"{name}-domains", f"{one.heading}: domains of the removed experts", text, served)
    in_use = inference_table(one.reports)
    if in_use is not None:
        yield Part(f"{name}-inference", f"{one.heading}: in use", "Memory and speed beside the unpruned model.", in_use)
    tested = significance_table(tests)
    if tested is not None:
        text = "Whether two methods, or two values of one setting, differ significantly on the same items."
        yield Part(f"{name}-paired", f"{one.heading}: paired tests", text, tested)
    published = published_table(one.reports)
    if published is not None:
        heading, text = f"{one.heading}: published figures", verdict_text(published)
        yield Part(f"{name}-published", heading, text, published, with_verdict(published))


def _over_models(sets: Sequence[ComparableSet], folder: str) -> Iterator[Section]:
    """Figures that have several models in them, or why there are none; nothing where a model has several sets."""
    runs = [run for one in sets for run in one.runs]
    if not len({run.report["model"]["source"] for run in runs}) == len(sets) > 1:
        return
    if apart := list(unequal(runs)):
        yield Section("All models", "\n\n".join(["No figure has all of them:", *apart]))
    elif figures := draw.draw_figures_over_models([run.report for run in runs], folder):
        yield Section("All models", "Models differ in more than their experts.", [], figures)


def _names(sets: Sequence[ComparableSet]) -> list[str]:
    """A file's name for each set: its model's, and a number where a model has several."""
    sources = [re.split(r"[/:]", str(one.reports[0]["model"]["source"]))[-1] for one in sets]
    stems = [shortened(re.sub(r"[^\w.-]", "-", source).lstrip(".") or "model", FILE_NAME_BYTES) for source in sources]
    # Which end names of other tables.
    stems = [re.sub(r"-(domains|inference|paired|plans|published)$", r"_\1", stem) for stem in stems]
    names: list[str] = []
    for place, stem in enumerate(stems):
        number = stems[: place + 1].count(stem)
        name = stem if stems.count(stem) == 1 and stem != OVER_MODELS else f"{stem}-{number}"
        while name in names:  # a model may be called so
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def _markdown(title: str, sections: Sequence[Section]) -> str:
    blocks = [f"# {markdown.text(title)}"]
    for section in sections:
        tables = (table.markdown().rstrip() for table in section.tables)
        blocks += [f"## {markdown.text(section.heading)}", markdown.paragraphs(section.text), *tables]
        stated = {**section.facts, **section.settings}.items()
        blocks += [markdown.paragraphs(f"{name}: {value}") for name, value in stated]
        for figure in section.figures:
            blocks += [f"![{markdown.text(figure.title)}]({figure.name}.png)", markdown.paragraphs(figure.caption)]
    return "\n\n".join(blocks) + "\n"
