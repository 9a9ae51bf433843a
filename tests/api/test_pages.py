"""The Python that pages show runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = [
    (page, block)
    for page in ("README.md", "docs/python.md")
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.S | re.M)
]


def test_both_pages_show_some() -> None:
    assert {page for page, _ in BLOCKS} == {"README.md", "docs/python.md"}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_it_runs_where_nothing_else_is(page: str, block: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/report.json"))) == 1


def test_the_table_names_what_there_is() -> None:
    import stun_exp

    named = re.findall(r"^\| `(\w+)\(", (ROOT / "docs/python.md").read_text(), re.M)
    assert {*named, "Report"} == set(stun_exp.__all__)
