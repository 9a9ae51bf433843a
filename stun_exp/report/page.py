"""One page with tables and figures, whole in itself: it runs no script and fetches nothing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from stun_exp.report.figures.draw import Figure
from stun_exp.report.figures.style import DARK
from stun_exp.report.tables.table import ResultsTable
from stun_exp.report.tables.view import view

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("page.html.jinja")
HEAD = TEMPLATE.read_text().partition("{{")[0]
"""How every page begins."""


@dataclass(frozen=True)
class Section:
    """What stands under one heading: text, with an empty line between its paragraphs, tables, facts, figures."""

    heading: str
    text: str
    tables: Sequence[ResultsTable] = ()
    figures: Sequence[Figure] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    """What runs have in common, by name."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """More of it, which a page shows behind a fold."""


def page(title: str, sections: Sequence[Section]) -> str:
    """The HTML; its figures are SVG in colors that follow the reader's light or dark mode."""
    from jinja2 import Environment, StrictUndefined

    numbers = count()
    templates = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"view": view, "breakable": breakable}
    templates.filters["svg"] = lambda figure: inlined(figure, f"f{next(numbers)}-")
    return templates.from_string(TEMPLATE.read_text()).render(title=title, sections=sections, colors=DARK)


def breakable(heading: str) -> "Markup":
    """A heading that goes on in another line where its column is narrow: at brackets or, if need be, underscores."""
    from markupsafe import Markup, escape

    name, bracket, unit = heading.partition(" (")
    told = Markup("{} <small>({}</small>").format(name, unit) if bracket else escape(heading)
    return told.replace("_", Markup("_<wbr>"))


def inlined(figure: Figure, prefix: str) -> "Markup":
    """A figure as a part of a page: its ids begin with `prefix`, and its colors are the page's to choose."""
    from markupsafe import Markup, escape

    svg = figure.svg[figure.svg.index("<svg ") :].replace(
        "<svg ", f'<svg role="img" aria-label="{escape(figure.title)}" ', 1
    )
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return Markup(re.sub("|".join(DARK), lambda color: f"var(--{color[0][1:]})", svg))
