"""What the other commands read: reports beside good ones, folders of reports, and models that are looked at."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fuzz_mutants import damaged_bytes, damaged_json, damaged_lines, no_file
from fuzz_world import BASE, CASES, SEED, Ended, World, as_anybody, complaint, ended, everything

from stun_exp.cli.main import main
from stun_exp.report.command import main as report


def command(run: Callable[[], None], *argv: str) -> Ended:
    before = sys.argv
    sys.argv = ["stun", *argv]
    try:
        with as_anybody():
            return ended(run)
    finally:
        sys.argv = before


def damaged(random: Random, file: Path) -> str:
    """Damages any file in a way of its kind."""
    if random.random() < 0.4:
        return no_file(random, file)
    change = {".json": damaged_json, ".jsonl": damaged_lines}.get(file.suffix, damaged_bytes)
    content, what = change(random, file.read_bytes())
    file.write_bytes(content)
    return what


def a_report(world: World, at: Path, random: Random) -> str:
    """One of two runs' reports, samples, or of the files of an earlier report."""
    for name in ("a", "b"):
        (at / name).mkdir()
        content = json.loads((world.home / "run/report.json").read_text()) | {"name": name}
        (at / name / "report.json").write_text(json.dumps(content))
    if random.random() < 0.5:
        command(report, str(at))
    file = random.choice(sorted(file for file in at.rglob("*") if file.is_file()))
    what = f"{file.relative_to(at)}: {damaged(random, file)}"
    before = everything(at)
    done = command(report, str(at))
    made = str(at / "report")

    def own(path: str) -> bool:
        return path.startswith(made) and (path != str(file) or file.name == "written.json")

    why = complaint(done, before, everything(at), (file.name, str(file.parent)), own)
    said = why or not os.path.lexists(file) or done.code or str(file.parent) in done.said
    if (
        file.name == "report.json"
        and not said
        and f"| {file.parent.name} " not in (at / "report/report.md").read_text()
    ):
        why = "left out, without a word"
    return f"{what}\n  {why}\n  {done.said}" if why else ""


def an_inspected_model(world: World, at: Path, random: Random) -> str:
    world.copy(at, "model")
    file = at / "model" / random.choice(("config.json", "model.safetensors.index.json"))
    what = f"{file.name}: {damaged(random, file)}"
    before = everything(at)
    text = f"calibration.path={world.home / 'text/text.jsonl'}"
    done = command(main, "inspect", *BASE, f"model.path={at / 'model'}", text)
    why = complaint(done, before, everything(at), (file.name, str(at / "model"), "model.path="))
    return f"{what}\n  {why}\n  {done.said}" if why else ""


CATEGORIES = {"report": a_report, "inspect": an_inspected_model}


def case(world: World, at: Path, category: str, number: int) -> str:
    return CATEGORIES[category](world, at, Random(f"{SEED} {category} {number}"))


@pytest.mark.parametrize(
    ("category", "number"),
    # the command line of the second takes seconds to read
    [*(("report", number) for number in range(CASES)), *(("inspect", number) for number in range(CASES // 4))],
)
def test_a_damaged_file_of_another_command(world: World, tmp_path: Path, category: str, number: int) -> None:
    assert case(world, tmp_path, category, number) == ""
