"""Links, commands, settings and examples of the documentation are held to what is there."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from stun_exp.cli.check import check, settings_of
from stun_exp.cli.main import CONF, EXPERTS, TO
from stun_exp.cli.speed import is_place

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
ADDING = [page for page in DOCS if page.stem.startswith("adding")]
GROUPS = {file.parent.name for file in CONF.glob("*/*.yaml")} - {"experiment"}
assert DOCS
assert ADDING
assert GROUPS
SHOWN_ELSEWHERE = {"dimensions"}
"""Settings that are not settings: what `stun inspect` reads of a card."""


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """(File, anchor) of each link to a file of ours."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            yield (page.parent / file).resolve() if file else page, anchor


def anchors(page: Path) -> set[str]:
    """What a link can lead to within a page, as GitHub names headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), file
        assert not anchor or anchor in anchors(file), f"{file}#{anchor}"


def test_every_page_can_be_reached_from_the_index() -> None:
    reached, left = set[Path](), [ROOT / "docs" / "index.md"]
    while left:
        page = left.pop()
        if page.suffix == ".md" and page not in reached and page.exists():
            reached.add(page)
            left += [file for file, _ in links(page)]
    assert set(DOCS) - reached == set()
    assert ROOT / "docs" / "index.md" in {file for file, _ in links(ROOT / "README.md")}


def commands(page: Path) -> list[str]:
    """Our commands in a page's bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.S | re.M)
    lines = (line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.startswith("stun ")]


@pytest.mark.parametrize("command", [pytest.param(c, id=c) for page in DOCS for c in commands(page)])
def test_commands_pass_the_check_of_the_command_line(command: str) -> None:
    """Nothing is run here. What cannot be checked stands in a block without a language."""
    _, *words = shlex.split(command)
    if words[0] in ("inspect", "fetch"):
        flags = {EXPERTS, TO, "DIR"}
        settings_of([word for word in words[1:] if word not in flags], CONF)
    elif words[0] == "speed":
        assert any(is_place(word) for word in words[1:])
        settings_of(["inference=measure", *(word for word in words[1:] if not is_place(word))], CONF)
    else:
        check(words, CONF)


@cache
def setting_names() -> set[str]:
    """Every setting there is, under any choice of each group, and Hydra's, by dotted name."""
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="stun"):
        configs = [compose("config", [f"eval={name}"], return_hydra_config=True) for name in choices_of("eval")]
    found = {name for config in configs for name in leaves(OmegaConf.to_container(config), "")}
    for group in {*GROUPS, "hydra/launcher"} - {"method", "eval"}:
        for file in (CONF / group).glob("*.yaml"):
            found |= leaves(OmegaConf.to_container(OmegaConf.load(file)), group.replace("/", "."))
    return found


def choices_of(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def leaves(node: Any, path: str) -> set[str]:
    """Every name in nested settings, of groups of them too."""
    inside = node.items() if isinstance(node, dict) else ()
    names = {f"{path}.{key}" if path else str(key): value for key, value in inside}
    return {*names, *(name for inner, value in names.items() for name in leaves(value, inner))}


def settings_in(page: Path) -> list[tuple[str, str]]:
    """(KEY, VALUE) of each setting in the page's inline code, alone or in a command or a folder's name."""
    words = [word for code in inline_code(page) for word in re.split(r"[ ,](?![^\[]*\])", code)]
    # What is before a slash is a folder: runs/PACK/method=owl
    found = [re.fullmatch(r"(?:.*/(?<!hydra/))?(hydra/launcher|[a-z_][\w.]*)=([^=]*)", word) for word in words]
    return [(match[1], match[2]) for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_settings_exist(page: Path) -> None:
    wrong = []
    for key, value in settings_in(page):
        if key in GROUPS and value.isidentifier():
            known = value in choices_of(key)
        elif key == "experiment" and value.isidentifier():
            known = value == "PACK" or (CONF / f"experiment/{value}.yaml").exists()
        elif key == "hydra/launcher":
            known = value in choices_of(key)
        elif "." in key:
            known = key in setting_names()
        else:
            continue  # a benchmark's or a function's own
        if not known:
            wrong.append(f"{key}={value}")
    assert not wrong


def test_the_search_for_settings_finds_them(tmp_path: Path) -> None:
    """That the test above could fail: alone, in commands, in lists, with brackets."""
    page = tmp_path / "page.md"
    page.write_text("`a.b=1`, `stun -m c.d=1,2 e=[3,4]`\n```\nf.g=1\n```\n`runs/x/h=1,i.j=2` `hydra/launcher=ray`\n")
    assert settings_in(page) == [
        ("a.b", "1"), ("c.d", "1"), ("e", "[3,4]"), ("h", "1"), ("i.j", "2"), ("hydra/launcher", "ray")
    ]  # fmt: skip
    assert "eval.limit" in setting_names()
    assert "hydra.launcher.n_jobs" in setting_names()
    assert "eval.limits" not in setting_names()


@pytest.mark.parametrize("group", sorted(GROUPS - {"benchmark", "model", "hydra"}))
def test_every_choice_and_every_setting_is_explained(group: str) -> None:
    """The pages are complete: a choice or a setting that is added has to be written about."""
    said = {word for page in DOCS for code in inline_code(page) for word in re.findall(r"[\w]+", code)}
    choices = set(choices_of(group))
    assert choices - said == set()
    if group == "method":
        return
    keys = {key for choice in choices for key in OmegaConf.load(CONF / group / f"{choice}.yaml")}
    assert {str(key) for key in keys} - {"_target_", "defaults"} - SHOWN_ELSEWHERE - said == set()


def test_every_pack_is_listed() -> None:
    listed = (ROOT / "docs" / "sweeps.md").read_text()
    bundled = {"demo", "expert_pruners", "laboratory"}
    assert {pack for pack in set(choices_of("experiment")) - bundled if f"`{pack}`" not in listed} == set()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each file that the pages on adding show behind its name."""
    folder = tmp_path_factory.mktemp("examples")
    for page in ADDING:
        for name, block in re.findall(r"`([\w/.]+\.\w+)`[^`\n]*:\n\n```\w*\n(.*?)^```$", page.read_text(), re.S | re.M):
            name = f"tasks/capitals/{name}" if "/" not in name else name
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block)
    return folder


@pytest.fixture
def importable(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples' modules are found among ours."""
    import stun_exp.expert_pruner
    import stun_exp.unstructured_pruner

    for package in (stun_exp.expert_pruner, stun_exp.unstructured_pruner):
        more = str(examples / package.__name__.replace(".", "/"))
        monkeypatch.setattr(package, "__path__", [*package.__path__, more])


def test_the_examples_compose(examples: Path, importable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the examples' configs beside ours; the benchmark's data is read as well."""
    monkeypatch.chdir(examples)
    beside = f"hydra.searchpath=[file://{examples}/conf]"
    parts = ["expert_pruner=weight_norm", "unstructured_pruner=wanda_power", "unstructured_pruner.power=0.3"]
    parts += ["eval=wikitext", "~eval.benchmarks.wikitext", "+benchmark@eval.benchmarks.capitals=capitals"]
    settings: Any = settings_of([beside, *parts], CONF)
    assert settings.expert_pruner.ratio == 0.2
    assert settings.unstructured_pruner.power == 0.3
    assert [len(loaded.tasks["capitals"].eval_docs) for _, loaded in settings.eval.prepare().benchmarks] == [2]
    check(["-m", beside, "experiment=weight_norm"], CONF)
    check(["-m", beside, "experiment=toy/weight_norm"], CONF)


@pytest.mark.slow
def test_the_examples_pass_their_own_tests(examples: Path) -> None:
    groups = ("expert_pruner", "unstructured_pruner")
    lines = [f"stun_exp.{group}.__path__.append(r'{examples}/stun_exp/{group}')" for group in groups]
    (examples / "conftest.py").write_text("\n".join([*(f"import stun_exp.{group}" for group in groups), *lines]))
    (examples / "tests/expert_pruner/conftest.py").write_text((ROOT / "tests/expert_pruner/conftest.py").read_text())
    plain = ["-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null", f"--rootdir={examples}", "-q"]
    words = [sys.executable, "-m", "pytest", *plain, str(examples / "tests")]
    done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True)
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_the_family_of_the_examples_is_one_that_we_lack() -> None:
    """Once it is in the table, the page needs another."""
    from stun_exp.moe.families import FAMILIES

    (shown,) = re.findall(r'model_type="(\w+)"', (ROOT / "docs" / "adding-more.md").read_text())
    assert shown not in FAMILIES
