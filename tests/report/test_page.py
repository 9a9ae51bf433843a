"""The page of a report, as text and in a browser."""

import fcntl
import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from stun_exp.report.figures import charts
from stun_exp.report.figures import style as drawing
from stun_exp.report.figures.axes import Axis, Reference
from stun_exp.report.figures.draw import Figure
from stun_exp.report.figures.style import Line
from stun_exp.report.page import Section, breakable, inlined, page
from stun_exp.report.tables.table import Cell, ResultsTable

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
MEASURE = """
(() => {
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (!color.startsWith("rgba(0, 0, 0, 0")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const texts = [...document.body.querySelectorAll("*")].filter(hasText).map((element) => {
    const drawn = element instanceof SVGElement, style = getComputedStyle(element);
    return [element.textContent.trim(), drawn ? style.fill : style.color, behind(element)];
  });
  const size = (selector) => [...document.querySelectorAll(selector)].map((element) => {
    const box = element.getBoundingClientRect();
    return [box.left, box.right, box.height];
  });
  return JSON.stringify({
    width: innerWidth, content: document.documentElement.scrollWidth, texts, figures: size("figure svg"),
    boxes: size(".scroll:not(details *)"), tables: size("table:not(details *)"),
    ids: [...document.querySelectorAll("[id]")].map((e) => e.id),
  });
})()
"""


@dataclass
class Browser:
    """Chromium without a window, spoken to in its DevTools protocol over two pipes."""

    profile: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        its_in, self.send_to = os.pipe()
        self.read_from, its_out = os.pipe()
        # It reads 3 and writes 4; from numbers above those neither copy overwrites the other pipe.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (its_in, its_out)]
        assert CHROMIUM
        self.process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", CHROMIUM, "--headless", "--no-sandbox"),
                *("--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--hide-scrollbars", f"--user-data-dir={self.profile}", "about:blank"),
            ],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (its_in, its_out, *ends):
            os.close(end)
        self.received, self.number, self.session = b"", 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | self.session
        os.write(self.send_to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, file: Path, width: int, mode: str) -> dict[str, Any]:
        """What `MEASURE` finds on a page of this width, in light or dark mode."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": mode}])
        self.call("Page.navigate", url=file.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        found: dict[str, Any] = json.loads(self.call("Runtime.evaluate", expression=MEASURE)["result"]["value"])
        return found

    def requests(self) -> list[str]:
        """Every address that the page asked for."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [request["request"]["url"] for request in sent]

    def complaints(self) -> list[dict[str, Any]]:
        """What the page or the browser wrote into its console."""
        heard = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event["params"] for event in self.events if event["method"] in heard]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.send_to)
        os.close(self.read_from)

    def _next(self) -> dict[str, Any]:
        until = monotonic() + 60
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.read_from], [], [], max(until - monotonic(), 0))
            part = os.read(self.read_from, 1 << 16) if ready else b""
            assert part, "the browser has nothing to say"
            self.received += part
        message, _, self.received = self.received.partition(b"\0")
        read: dict[str, Any] = json.loads(message)
        return read


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with two tables that are wider than a telephone, and each kind of figure."""
    folder = tmp_path_factory.mktemp("page")
    heading = "hub/A-model-of-a-long-name-v0.1; arc_challenge (25 shots, acc_norm,none), gsm8k_of_a_long_name (5 shots)"
    sections = [
        Section(heading, "First.\n\nSecond <b>.", [table()], figures()),
        Section("Others", "Text.", [table()], facts={"command": "stun -m " + "a=b " * 40}, settings={"seed": "0"}),
    ]
    file = folder / "index.html"
    file.write_text(page("runs/a_sweep_with_a_name_of_many_letters & <more>", sections))
    return file


def table() -> ResultsTable:
    """The last method is the best everywhere, and has no number in its last column."""
    names = ["STUN (OWL)", "a method of a long name without any end", "OWL", "OWL"]
    rows = [
        [
            Cell(name),
            *(Cell(f"{i}.5 ± 0.1", i + 0.5, 0.1, bold=place == 3) for i in range(12)),
            Cell("-"),
            Cell("7 s", 7),
        ]
        for place, name in enumerate(names)
    ]
    return ResultsTable(
        ["method", *(f"task_{i} (acc_norm)" for i in range(13)), "time"],
        rows,
        ("A note <i>.",),
        folded=frozenset(["time"]),
        groups=("", "40 % <b>", "65 %", "65 %"),
    )


def main_table() -> ResultsTable:
    """As wide as those of the packs: eight benchmarks, two settings, shares, and costs."""
    rows = [
        [*map(Cell, ("a long name of a method", "frobenius", setting)), *[Cell("20.3 %", 20.3)] * 2]
        + [Cell(f"{50 + place}.5 ± 10.1", 50.5, 10.1) for place in range(8)]
        + [Cell("1234", 1234.0)] * 4
        for setting in ("average", "complete")
    ]
    settings, costs = ["scaling", "linkage"], ["calibration passes", "selection (s)", "peak GiB", "total (s)"]
    tasks = [f"toy_hellaswag{place} (acc_norm)" for place in range(8)]
    columns = ["method", *settings, "experts removed", "total sparsity", *tasks, *costs]
    return ResultsTable(columns, rows, keys=frozenset(columns[1:5]), folded=frozenset(costs))


def figures() -> list[Figure]:
    few, many = ([Line(f"method & {i}", [0, 1], [i, i + 1], [0.5, None], i) for i in range(count)] for count in (3, 10))
    names = Axis("", ticks={0.0: "one", 1.0: "two"})
    with drawing.style():
        drawn = {
            "lines": charts.lines("Lines <of> & more", few, Axis("x"), Axis("y"), [Reference("unpruned", 2.0)]),
            "panels": charts.lines("Panels", many, Axis("x"), Axis("y")),
            "heat": charts.heat("Heat", [[1.0, 2.0], [None, 3.0]], names, names, "acc", 1),
        }
        return [Figure(stem, f"About {stem}.", stem, *drawing.rendered(one)) for stem, one in drawn.items()]


def contrast(one: str, other: str) -> float:
    """Of two colors as `rgb(r, g, b)`, by the Web Content Accessibility Guidelines: 1 to 21."""
    levels = []
    for color in (one, other):
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(levels) + 0.05) / (min(levels) + 0.05)


@NEEDS_CHROMIUM
@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(browser: Browser, html: Path, width: int, mode: str) -> None:
    """It fits a telephone, can be read by day and night, asks for nothing and complains of nothing."""
    found = browser.open(html, width, mode)
    assert browser.requests()[0] == html.as_uri()
    assert all(url.startswith("data:") for url in browser.requests()[1:])
    assert browser.complaints() == []
    assert (found["width"], found["content"]) == (width, width)
    assert all(0 <= left < right <= width for left, right, _ in found["boxes"] + found["figures"])
    assert len(found["figures"]) == 3
    assert all(right - left > 250 and height > 70 for left, right, height in found["figures"])
    if width == 360:
        assert all(right > width for _, right, _ in found["tables"]), "it should scroll inside its box"
    assert len(found["ids"]) == len(set(found["ids"]))
    # A map's numbers lie on its colors, which stay as they are.
    in_a_cell = {"rgb(0, 0, 0)", "rgb(254, 254, 254)"}
    seen = [(text, contrast(ink, paper)) for text, ink, paper in found["texts"] if ink not in in_a_cell]
    assert {"First.", "A note <i>.", "method & 1", "OWL", "About heat.", "Others"} <= {text for text, _ in seen}
    assert [(text, found) for text, found in seen if found < 4.5] == []
    body = next(paper for text, _, paper in found["texts"] if text == "First.")
    assert (contrast(body, "rgb(0, 0, 0)") < 2) == (mode == "dark")


@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [1280, 1600])
def test_a_main_table_fits_a_desktop_without_scrolling(browser: Browser, tmp_path: Path, width: int) -> None:
    file = tmp_path / "index.html"
    file.write_text(page("x", [Section("Results", "Text.", [main_table()])]))
    found = browser.open(file, width, "light")
    (table,), (box,) = found["tables"], found["boxes"]
    assert table[1] - table[0] <= box[1] - box[0] <= width


@NEEDS_CHROMIUM
def test_the_browser_sees_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    """Else the test above could not fail."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body style="margin: 0; background: #777"><div style="width: 2000px; color: #888">gray</div>'
        '<img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script>'
    )
    found = browser.open(bad, 360, "light")
    assert "http://127.0.0.1:9/x.png" in browser.requests()
    assert browser.complaints()
    assert found["content"] == 2000
    assert contrast(*found["texts"][0][1:]) < 1.5


def test_contrast_by_hand() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)


class Outline(HTMLParser):
    """The tags of a page, with their attributes, and its text by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip() and self.tags:
            self.texts.setdefault(self.tags[-1][0], []).append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_page_is_whole_in_itself(html: Path) -> None:
    """No script, and no address but places in the page, namespaces and data."""
    outline = Outline(html.read_text())
    assert outline.all("html") == [{"lang": "en"}]
    assert not {"script", "iframe", "object"} & {tag for tag, _ in outline.tags}
    addresses = [a[key] or "" for _, a in outline.tags for key in ("href", "src", "xlink:href") if key in a]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    places = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    assert {address[1:] for address in addresses if address.startswith("#")} <= places


def test_what_is_given_is_text(html: Path) -> None:
    """A heading's < and & are shown and not read as markup; paragraphs are divided by empty lines."""
    outline = Outline(html.read_text())
    assert outline.texts["h1"] == ["runs/a_sweep_with_a_name_of_many_letters & <more>"]
    assert outline.texts["p"][:3] == ["First.", "Second <b>.", "A note <i>."]
    assert outline.texts["strong"] == [f"{i}.5 ± 0.1" for i in range(12)] * 2
    assert outline.texts["span"] == ["40 % <b>", "65 %"] * 4, "headings, in the table and behind its fold, twice"
    assert outline.texts["summary"] == ["More columns: time"] * 2 + ["Settings that all runs share"]
    assert [header.get("rowspan") for header in outline.all("th")].count("2") == 4, "OWL once for its two rows"
    assert [svg["aria-label"] for svg in outline.all("svg")] == ["lines", "panels", "heat"]
    assert outline.texts["figcaption"] == ["About lines.", "About panels.", "About heat."]
    assert {header["scope"] for header in outline.all("th")} == {"col", "row", "rowgroup"}


def test_a_heading_is_text_that_may_be_broken() -> None:
    """Before a bracket as a whole, then behind underscores; markup in a name stays text."""
    assert breakable("toy_arc (acc_norm)") == "toy_<wbr>arc <small>(acc_<wbr>norm)</small>"
    assert breakable("<b>_x") == "&lt;b&gt;_<wbr>x"


def test_a_figure_follows_the_page_s_colors() -> None:
    """No light color is left in it, its ids are its own, and the numbers of a map stay white on dark cells."""
    for figure in figures():
        svg = inlined(figure, "f7-")
        assert not [light for light in drawing.DARK if light in svg]
        assert f"var(--{drawing.INK[1:]})" in svg
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert ids
        assert all(name.startswith("f7-") for name in ids)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= set(ids)
    assert "#fefefe" in inlined(figures()[2], "")
