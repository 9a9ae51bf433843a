"""Text from reports and checkpoints stays text in Markdown, HTML, LaTeX and CSV."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from stun_exp.pipeline.model_card import model_card
from stun_exp.report.command import write_report
from stun_exp.utils import markdown

Make = Callable[..., dict[str, Any]]
WRAPPINGS = (
    "<script>{0}</script>",
    "<img src=x onerror={0}>",
    "</td></table><b>{0}",
    "<!-- {0}",
    "[{0}](javascript:alert(1))",
    "[{0}](JavaScript:alert(1)) [a][b]\n\n[b]: vbscript:x",
    "![{0}](https://example.com/x.png)",
    "{0} <javascript:alert(1)> <https://example.com>",
    "{0} data:text/html,x",
    "{0}\n\n# heading\n\n- list\n\n> quote\n\n    code\n\n---",
    "{0}\n\n```\n<script>",
    "`{0}` ``` ~~~ $x$",
    "{0} | a | b\n| --- | --- |\n| c | d |",
    "\\{0}\\<script>\\[a\\](b)",
    "&lt;script&gt; {0} &#60;b&#62; &amp;",
    "*{0}* **b** __c__ _d_ ~~e~~",
    "=HYPERLINK({0})",
    "+{0}",
    "-{0}",
    "@{0}",
    "\t={0}",
    "\\input{{{0}}} $x_1^2$ % # & ~",
    "\x1b[31m{0}\x00\r\u2028",
    "1. {0}",
    "<0{0} <a>",
)
HARMLESS = (
    "toy_gsm8k (exact_match)",
    "33.3 ± 0.1",
    "<0.001",
    "STUN (OWL)",
    "lambda2=0.5, linkage=average",
    "a__b_c",
    "-",
    "+5.3",
    "2 runs. What differs among them is the seed, or has a column.",
    "±: of several seeds, the standard error; p < 0.05 & more; 40 %",
    "runs/x/method=owl,sparsity=0.4: did not end",
)
HOSTILE = [wrapping.format("HOSTILE") for wrapping in WRAPPINGS]
FORBIDDEN = re.compile(r"<[a-z]|</|<!|<\?|javascript:|vbscript:|data:\s*text", re.IGNORECASE)


def tokens(text: str) -> list[Token]:
    """Of Markdown with tables and raw HTML, inner ones too."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    found = parser.parse(text)
    return [*found, *chain.from_iterable(token.children or [] for token in found)]


def kinds(text: str) -> set[str]:
    return {token.type for token in tokens(text)} - {"softbreak", "text_special"}


def shown(text: str) -> str:
    """What a reader sees."""
    return "".join(token.content for token in tokens(text) if token.type in ("text", "code_inline", "text_special"))


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_is_text_in_each_place(text: str) -> None:
    once = markdown.text(text)
    assert kinds(f"# {once}") == {"heading_open", "inline", "text", "heading_close"}
    assert kinds(markdown.paragraphs(text)) == {"paragraph_open", "inline", "text", "paragraph_close"}
    assert kinds(markdown.code(text)) <= {"paragraph_open", "inline", "text", "code_inline", "paragraph_close"}
    block = kinds(markdown.code_block(text, "bash"))
    assert block in ({"fence"}, {"paragraph_open", "inline", "text", "paragraph_close"})
    written = "\n".join([once, markdown.paragraphs(text), markdown.code(text), markdown.code_block(text, "bash")])
    assert not FORBIDDEN.search(written)
    seen = " ".join(part for part in re.split(r"[\s\x00-\x1f\u2028]+", text) if part)
    assert shown(f"# {once}") == seen, "it is read as it was given"


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_looks_as_it_is(text: str) -> None:
    assert markdown.text(text) == text


def test_harmless_code_is_code() -> None:
    assert markdown.code("owner/model_v0.1") == "`owner/model_v0.1`"
    assert markdown.code_block("stun 'name=a b'", "bash") == "```bash\nstun 'name=a b'\n```"
    assert markdown.code_block("stun 'name=```'", "bash") == "````bash\nstun 'name=```'\n````"


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of all texts in a report that the user, a checkpoint or a task chooses."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inside:
        if isinstance(value, str):
            yield (*path, key)
        yield from places(value, (*path, key))


def with_text(report: dict[str, Any], number: int) -> dict[str, Any]:
    """The same with hostile text in every place that can hold any."""
    changed = deepcopy(report)
    for offset, (*path, key) in enumerate(places(report)):
        node = changed
        for step in path:
            node = node[step]
        if key != "sparsity_scope" and path != ["provenance", "versions"]:
            node[key] = HOSTILE[(number + offset) % len(HOSTILE)]
    benchmarks = changed["settings"]["eval"]["benchmarks"]
    metrics = changed["metrics"]
    for name, benchmark in list(benchmarks.items()):
        key = f"{benchmark['task']}/{benchmark['metric']}"
        metrics[key] = deepcopy(report["metrics"][f"{name}/acc,none"])
    changed["settings"]["expert_pruner"][HOSTILE[number]] = HOSTILE[-number]
    return changed


class Tags(HTMLParser):
    """The tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses |= {value or "" for name, value in attrs if name in ("href", "src", "xlink:href")}


def test_a_report_of_hostile_text_has_no_markup_but_its_own(
    make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are drawn, and not rendered."""
    picture = (b"PNG", '<svg viewBox="0 0 1 1"></svg>')
    monkeypatch.setattr("stun_exp.report.figures.style.rendered", lambda figure: picture)
    for number in range(len(HOSTILE)):
        folder = tmp_path / "sweep" / f"[{number}](javascript:x) <b>"
        folder.mkdir(parents=True)
        report = with_text(make_report(baseline=0.5), number)
        (folder / "report.json").write_text(json.dumps(report))
    out = write_report([tmp_path / "sweep"], tmp_path / "out").parent
    check_markdown(out)
    check_page(out / "index.html")
    check_latex(out / "tables")
    check_csv(out / "tables")


def check_markdown(out: Path) -> None:
    files = [out / "report.md", *(out / "tables").glob("*.md")]
    assert len(files) > len(HOSTILE)
    blocks = ("heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td", "strong")
    allowed = {f"{block}_{end}" for block in blocks for end in ("open", "close")} | {"inline", "text", "image"}
    for file in files:
        text = file.read_text()
        assert not FORBIDDEN.search(text), file
        assert kinds(text) <= allowed, file
        images = [str(token.attrGet("src")) for token in tokens(text) if token.type == "image"]
        assert all(re.fullmatch(r"figures/[\w.-]+/[a-z0-9-]+\.png", source) for source in images)


def check_page(file: Path) -> None:
    page = Tags(file.read_text())
    assert not page.tags & {"script", "img", "b", "iframe"}
    assert not [name for name in page.attributes if name.startswith("on")]
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)


def check_latex(folder: Path) -> None:
    files = list(folder.glob("*.tex"))
    assert files
    for file in files:
        bare = re.sub(r"\\[{}\\&%$#_]", "", file.read_text())
        assert r"\input" not in bare
        assert bare.count("{") == bare.count("}")


def check_csv(folder: Path) -> None:
    rows = [row for file in folder.glob("*.csv") for row in csv.reader(file.read_text().splitlines(keepends=True))]
    cells = [cell for row in rows for cell in row if cell]
    formulas = [cell for cell in cells if cell[0] in "=+-@\t\r\n"]
    assert [cell for cell in formulas if not re.fullmatch(r"[+-][\d.e-]+", cell)] == []
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_model_card_of_hostile_text(text: str) -> None:
    method = {"_target_": f"x.{text}.Y", text: text}
    report = {
        "name": text,
        "settings": dict.fromkeys(("expert_pruner", "allocation", "unstructured_pruner", "recovery"), method),
        "model": {"source": text, "model_type": text, "params_before": 5000, "params_after": 4000},
        "experts": {"before": [8], "after": [6]},
        "sparsity": {
            "target": 0.4,
            "achieved": 0.4,
            "scope": text,
            "per_layer": [{"weights_in_scope": 9, "removed": 2, "zeros": 3}],
        },
    }
    card = model_card(report, f"stun '{text}'")
    assert not FORBIDDEN.search(card)
    found = kinds(card.split("---\n", 2)[2])
    assert not {
        name for name in found if name.startswith(("html", "link", "image", "list", "bullet", "hr", "em_", "s_"))
    }
    assert {"table_open", "heading_open"} <= found
    assert [token.tag for token in tokens(card.split("---\n", 2)[2]) if token.type == "heading_open"] == ["h1", "h2"]
