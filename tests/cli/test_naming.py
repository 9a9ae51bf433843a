"""Names of runs' folders: short, without a slash, and one for each run."""

from pathlib import Path

from stun_exp.cli.naming import folder_name
from stun_exp.config.settings import folders


def test_a_name_is_what_is_named_in_order() -> None:
    texts = ["sparsity=0.4", "model.path=/x/y", "method=wanda", "+eval.limits.a=1", "~eval.benchmarks.b"]
    assert folder_name(texts, ["model.path", "eval.limits.a"]) == "method=wanda,sparsity=0.4,~eval.benchmarks.b"


def test_a_path_is_its_last_part_and_one_name_whatever_is_typed() -> None:
    """No folders in folders, no name that a disk refuses, and still one for each value."""
    values = ["/data/a", "/other/a", "/data/a/", "a", "'/data/b c'", "x" * 300, "x" * 301, f"'{'é' * 127}'"]
    names = [folder_name([f"model.path={value}"], []) for value in values]
    assert len(set(names)) == len(names)
    assert [name.rpartition("-")[0] for name in names[:3]] == ["model.path=a"] * 3
    assert names[3] == "model.path=a"
    assert names[4].startswith("model.path=b c-")
    assert not any("/" in name for name in names)
    assert max(len(name.encode()) for name in names) == 255
    assert "\ufffd" not in names[7]


def test_several_sparsities_have_a_folder_each() -> None:
    """However near they are; 0 and 0.0 are one."""
    found = folders([0.4, 0.4000000001, 0, 0.0, 1e-7], Path("x"))
    assert [folder.name for folder in found] == [
        "sparsity=0.4", "sparsity=0.4000000001", "sparsity=0", "sparsity=0", "sparsity=1e-07"
    ]  # fmt: skip
