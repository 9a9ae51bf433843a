"""One page with tables and figures, whole in itself: it runs no script and fetches nothing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from stun_exp.report.figures.draw import Figure
from stun_exp.report.figures.style import DARK
from stun_exp.report.tables.table import ResultsTable

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("page.html.jinja")
HEAD = TEMPLATE.read_text().partition("{{")[0]
"""How every page begins."""


@dataclass(frozen=True)
class Section:
    """What stands under one heading: text, with an empty line between its paragraphs, tables, figures."""

    heading: str
    text: str
    tables: Sequence[ResultsTable]
    figures: Sequence[Figure]


def page(title: str, sections: Sequence[Section]) -> str:
    """The HTML; its figures are SVG in colors that follow the reader's light or dark mode."""
    from jinja2 import Environment, StrictUndefined

    numbers = count()
    templates = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.filters["svg"] = lambda figure: inlined(figure, f"f{next(numbers)}-")
    return templates.from_string(TEMPLATE.read_text()).render(title=title, sections=sections, colors=DARK)


def inlined(figure: Figure, prefix: str) -> "Markup":
    """A figure as a part of a page: its ids begin with `prefix`, and its colors are the page's to choose."""
    from markupsafe import Markup, escape

    svg = figure.svg[figure.svg.index("<svg ") :].replace(
        "<svg ", f'<svg role="img" aria-label="{escape(figure.title)}" ', 1
    )
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return Markup(re.sub("|".join(DARK), lambda color: f"var(--{color[0][1:]})", svg))
