"""A report replaces and removes what reports wrote, and nothing else."""

import json
import os
from pathlib import Path

import pytest

from stun_exp.report.page import page
from stun_exp.report.written import INDEX_PAGE, MANIFEST, write_files

FIRST = {INDEX_PAGE: b"one", "figures/a/x.png": b"x", "figures/a/y.svg": b"y"}
SECOND = {INDEX_PAGE: b"two", "figures/a/x.png": b"other"}


def found(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder but the manifest."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {name: content for name, content in files.items() if name != MANIFEST}


def test_a_report_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    write_files(tmp_path, FIRST)
    assert found(tmp_path) == FIRST
    write_files(tmp_path, SECOND)
    assert found(tmp_path) == SECOND
    assert json.loads((tmp_path / MANIFEST).read_text()).keys() == SECOND.keys()
    write_files(tmp_path, SECOND)
    assert found(tmp_path) == SECOND


def test_a_file_of_the_user_s_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that lies beside, and one that was ours until somebody changed it."""
    write_files(tmp_path, FIRST)
    (tmp_path / "figures/a/mine.png").write_bytes(b"mine")
    (tmp_path / "figures/a/y.svg").write_bytes(b"drawn over")
    write_files(tmp_path, SECOND)
    assert found(tmp_path) == SECOND | {"figures/a/mine.png": b"mine", "figures/a/y.svg": b"drawn over"}
    assert capsys.readouterr().err == (
        f"{tmp_path / 'figures/a/y.svg'}: changed since it was written, so it is left, beside the new report\n"
    )


@pytest.mark.parametrize(("ours", "told"), [(False, "not written by a report"), (True, "changed since it was written")])
def test_a_file_in_the_way_is_a_refusal_and_nothing_is_written(tmp_path: Path, ours: bool, told: str) -> None:
    if ours:
        write_files(tmp_path, FIRST)
    file = tmp_path / "figures/a/x.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"mine")
    before = found(tmp_path)
    with pytest.raises(ValueError, match=rf"x\.png: .*{told}; .* with --out"):
        write_files(tmp_path, SECOND)
    assert found(tmp_path) == before


@pytest.mark.parametrize(
    "name", [INDEX_PAGE, f"{INDEX_PAGE}.partial", MANIFEST, "figures", "figures/a", "figures/a/x.png"]
)
@pytest.mark.parametrize("dangling", [False, True])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str, dangling: bool) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    if not dangling and name in ("figures", "figures/a"):
        elsewhere.mkdir()
    elif not dangling:
        elsewhere.write_text("{}")
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"{name}: (a link|not the list)"):
        write_files(out, FIRST)
    assert found(out) == ({} if dangling or not elsewhere.is_file() else {name: b"{}"} if name != MANIFEST else {})
    assert not dangling or not elsewhere.exists()


def test_a_linked_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="out: a link, where a report's folder is to be"):
        write_files(tmp_path / "out", FIRST)


def test_nothing_is_removed_through_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of figures that was moved and linked: its files are no more in this folder."""
    write_files(tmp_path / "out", FIRST)
    (tmp_path / "out/figures").rename(tmp_path / "moved")
    (tmp_path / "out/figures").symlink_to(tmp_path / "moved")
    write_files(tmp_path / "out", {INDEX_PAGE: b"two"})
    assert (tmp_path / "moved/a/x.png").read_bytes() == b"x"
    assert capsys.readouterr().err.count("left") == 2


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        (tmp_path / INDEX_PAGE).mkdir()
    else:
        os.mkfifo(tmp_path / INDEX_PAGE)
    with pytest.raises(ValueError, match=r"index\.html: no regular file"):
        write_files(tmp_path, FIRST)


@pytest.mark.parametrize("content", ["[]", "{", '{"index.html": 1}', '{"../x": "1"}', '{"/etc/passwd": "1"}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=r"written\.json: not the list of a report's files"):
        write_files(tmp_path, FIRST)


def test_a_report_that_was_stopped_while_it_wrote_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its files are the new ones then, and some still the old."""
    write_files(tmp_path, FIRST)
    replace, left = os.replace, [3]

    def stopped(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "stopped")
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(OSError, match="stopped"):
        write_files(tmp_path, FIRST | SECOND | {"z": b"z"})
    monkeypatch.setattr(os, "replace", replace)
    write_files(tmp_path, {INDEX_PAGE: b"three"})
    assert found(tmp_path) == {INDEX_PAGE: b"three"}


def test_a_report_from_before_there_were_lists_gives_way(tmp_path: Path) -> None:
    """Its page is known by how it begins; what has other names than the new report's stays."""
    (tmp_path / INDEX_PAGE).write_text(page("old", []))
    (tmp_path / "figures/a").mkdir(parents=True)
    for name in ("x.png", "z.png"):
        (tmp_path / "figures/a" / name).write_bytes(b"old")
    write_files(tmp_path, FIRST)
    assert found(tmp_path) == FIRST | {"figures/a/z.png": b"old"}


def test_every_kept_report_gives_way() -> None:
    from stun_exp.report.page import HEAD

    kept = list((Path(__file__).parents[2] / "results").rglob(INDEX_PAGE))
    assert kept
    assert [file for file in kept if not file.read_text().startswith(HEAD)] == []
