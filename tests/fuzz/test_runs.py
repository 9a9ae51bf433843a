"""Whatever lies in a run's folder or the cache: nothing is lost that no run has made, and no fault stays unsaid."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from stat import S_IRUSR
from typing import Any

import pytest
from fuzz_mutants import damaged_bytes, damaged_json, damaged_lines, no_file
from fuzz_world import CACHED, CASES, PLANNED, SEED, Ended, World, as_anybody, complaint, everything, result, stun

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.pipeline.preflight import files_of
from stun_exp.state.artifacts import ARTIFACTS, JOURNAL
from stun_exp.state.journal import own_files
from stun_exp.state.lock import LOCK

Case = Callable[[World, Path, Random], str]


def interrupted(out: Path, random: Random) -> None:
    """Makes of a finished run one that was killed: its journal ends somewhere, and there is no report."""
    lines = (out / JOURNAL).read_bytes().splitlines(keepends=True)
    (out / JOURNAL).write_bytes(b"".join(lines[: random.randrange(2, len(lines))]))
    (out / "report.json").unlink()


def judged(world: World, what: str, ended: Ended, before: dict[str, Any], at: Path, *named: str, own: Any) -> str:
    why = complaint(ended, before, everything(at), named, own)
    if not why and ended.code == 0 and result(at / "out") != world.results["run"]:
        why = "another result, without a word"
    return f"{what}\n  {why}\n  {ended.said}" if why else ""


def a_run(world: World, at: Path, random: Random) -> Path:
    out = at / "out"
    world.copy(at, "run")
    (at / "run").rename(out)
    if random.random() < 0.7:
        interrupted(out, random)
    (out / "diary.txt").write_text("theirs")
    return out


def is_regular(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def again(world: World, at: Path, random: Random, **more: Any) -> Ended:
    resume = random.choice(("continue", "continue", "restart"))
    with as_anybody():
        return stun(at / "out", world.values(world.home) | {"resume": resume} | more)


def a_file_of_a_run(world: World, at: Path, random: Random) -> str:
    """Any of the files that a run has left."""
    out = a_run(world, at, random)
    own = own_files(out) | {JOURNAL, LOCK}
    name = random.choice(sorted(name for name in own if (out / name).is_file()))
    file = out / name
    if random.random() < 0.5:
        what = no_file(random, file)
    else:
        change = damaged_json if file.suffix == ".json" else damaged_lines if file.suffix == ".jsonl" else damaged_bytes
        content, what = change(random, file.read_bytes())
        file.write_bytes(content)
    before = everything(at)
    taken = {str(out / one) for one in own if out / one != file or is_regular(file)}
    ended = again(world, at, random)
    named = (file.name, str(file), "hydra.run.dir=")
    why = judged(world, f"{file.name}: {what}", ended, before, at, *named, own=lambda path: path in taken)
    told_again = name in ARTIFACTS and name != "report.json"  # report.json says it too, and no run reads it
    healed = what == "not readable" and bool(file.stat().st_mode & S_IRUSR)  # written again, with the same content
    left = ended.code == 0 and not told_again and not healed and everything(at).get(str(file)) == before.get(str(file))
    if why or not left or file.name in ended.said:
        return why
    return f"{file.name}: {what}\n  left as it is, without a word"


def a_cached_value(world: World, at: Path, random: Random) -> str:
    world.copy(at, "cache")
    cache = at / "cache"
    file = random.choice(sorted(file for file in cache.rglob("*") if file.is_file()))
    if random.random() < 0.5:
        what = no_file(random, file)
    else:
        content, what = damaged_bytes(random, file.read_bytes())
        file.write_bytes(content)
    before = everything(at)
    with as_anybody():
        ended = stun(at / "out", world.values(world.home) | {"cache.path": str(cache)}, CACHED)
    what = f"{file.parents[1].name}: {what}"
    return judged(world, what, ended, before, at, str(cache), own=lambda path: path == str(file))


def a_plan(world: World, at: Path, random: Random) -> str:
    file = at / "plan.json"
    file.write_bytes((world.home / "run/plan.json").read_bytes())
    if random.random() < 0.2:
        (at / "deep").mkdir()
        file = file.rename(at / "deep/plan.json")
        what = no_file(random, file)
    else:
        content, what = damaged_json(random, file.read_bytes())
        file.write_bytes(content)
    before = everything(at)
    with as_anybody():
        ended = stun(at / "out", world.values(world.home) | {"expert_pruner.path": str(file)}, PLANNED)
    return judged(world, what, ended, before, at, "expert_pruner.path", own=lambda path: False)


def planted(world: World, at: Path, random: Random) -> str:
    """Somebody's file, folder, link or pipe where a run writes, or beside."""
    out = at / "out"
    if random.random() < 0.6:
        a_run(world, at, random)
    out.mkdir(exist_ok=True)
    names = [*files_of(Checkpoint(world.home / "model", None)), JOURNAL, LOCK, "clusters.json", "notes", "report"]
    names += [f"{name}.partial" for name in names]
    names += ["checkpoint", "recovery", "checkpoint/x", "recovery/x", "checkpoint/x/y"]
    own = own_files(out)
    own |= {f"{name}.partial" for name in own}  # what a run that was killed leaves
    file = out / random.choice(names)
    if file.exists() or file.relative_to(out).as_posix() in own:
        return ""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(random.choice(("theirs", "", '{"theirs": 1}', '{"theirs": 1}\n')))
    what = f"{file.relative_to(out)}: {file.read_text()!r}"
    if random.random() < 0.5:
        what += f", {no_file(random, file)}"
    if random.random() < 0.3 and file.is_dir():
        (file / "inside").write_text("theirs")
    before = everything(at)
    is_empty = is_regular(file) and not file.stat().st_size
    mine = {str(out / name) for name in own | {JOURNAL, LOCK}} - {str(file)}
    ended = again(world, at, random)
    return judged(
        world, what, ended, before, at, file.name, str(file.parent), own=lambda path: path in mine or is_empty
    )


CATEGORIES: dict[str, Case] = {
    "run": a_file_of_a_run,
    "cache": a_cached_value,
    "plan": a_plan,
    "planted": planted,
}


def case(world: World, at: Path, category: str, number: int) -> str:
    """What is wrong with how one case went; "" if nothing."""
    return CATEGORIES[category](world, at, Random(f"{SEED} {category} {number}"))


@pytest.mark.parametrize("number", range(CASES))
@pytest.mark.parametrize("category", CATEGORIES)
def test_a_damaged_folder(world: World, tmp_path: Path, category: str, number: int) -> None:
    assert case(world, tmp_path, category, number) == ""
