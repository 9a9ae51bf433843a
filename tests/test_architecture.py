"""What the contracts on imports in pyproject.toml cannot say of the house."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "stun_exp"
METHODS = ("expert_pruner", "allocation", "unstructured_pruner", "recovery", "skipping")


def imports(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def importers(module: str) -> set[str]:
    """The files, relative to the package, that import `module` or something in it."""
    return {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if any(name == module or name.startswith(module + ".") for name in imports(file))
    }


def targets() -> list[str]:
    """Every `_target_` in conf/, as class paths."""
    loaded = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "conf").rglob("*.yaml"))]
    return [config["_target_"] for config in loaded if isinstance(config, dict) and "_target_" in config]


def test_only_shards_knows_safetensors() -> None:
    """Outside the toy model, which is made here and not read."""
    assert {file for file in importers("safetensors") if not file.startswith("toy/")} == {"checkpoint/shards.py"}


def test_components_are_built_without_torch() -> None:
    """A mistake in a config is answered within two seconds; torch and transformers alone take longer."""
    modules = sorted({target.rpartition(".")[0] for target in targets()})
    assert modules
    program = (
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'lm_eval', 'wandb') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize("group", [*METHODS, "export", "inference"])
def test_a_component_has_the_same_name_three_times(group: str) -> None:
    """conf/group/X.yaml, stun_exp/group/X.py and tests/group/test_X.py.

    A YAML without a module of its name is a preset: other values for a class of the same group, tested like any.
    """
    configs = {file.stem: yaml.safe_load(file.read_text()) for file in (ROOT / "conf" / group).glob("*.yaml")}
    assert configs
    modules = {name: config["_target_"].rpartition(".")[0] for name, config in configs.items()}
    for name, module in modules.items():
        assert (ROOT / "tests" / group / f"test_{name}.py").is_file(), name
        room, _, home = module.rpartition(".")
        assert room.startswith(f"stun_exp.{group}"), name
        assert modules.get(home) == module, f"{module} is a component and has no {home}.yaml"
        if list((PACKAGE / group).rglob(f"{name}.py")):
            assert home == name, f"{name}.yaml passes {name}.py by"


def test_the_line_reads_from_top_to_bottom() -> None:
    """A run in under 60 lines, and no function of the pipeline longer than 50."""
    lengths = {
        f"{file.name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in (PACKAGE / "pipeline").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert "run.py:run" in lengths
    assert {name: length for name, length in lengths.items() if length > 50} == {}
