"""The arrows between modules, and the names that a component has three times."""

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


def test_moe_imports_nothing_of_the_project_but_itself() -> None:
    """A model seen as layers and experts knows no method, no disk and no run."""
    files = list((PACKAGE / "moe").glob("*.py"))
    assert files
    for file in files:
        inside = {name for name in imports(file) if name.startswith("stun_exp")}
        assert all(name.startswith("stun_exp.moe") for name in inside), file


def test_methods_import_moe_but_no_stage_and_no_disk() -> None:
    files = [file for group in METHODS for file in (PACKAGE / group).rglob("*.py")]
    assert {file.relative_to(PACKAGE).parts[0] for file in files} == set(METHODS)
    for file in files:
        rooms = ("cli", "pipeline", "streaming", "checkpoint", "models", "state", "config.settings")
        forbidden = tuple(f"stun_exp.{room}" for room in rooms)
        found = {name for name in imports(file) if name.startswith(forbidden)}
        # To write a file whole is to know nothing of checkpoints.
        assert not {name for name in found if not name.startswith("stun_exp.utils.files")}, file


def test_only_the_command_line_imports_run() -> None:
    assert importers("stun_exp.pipeline.run") == {"cli/main.py"}


def test_only_shards_knows_safetensors() -> None:
    """Outside the toy model, which is made here and not read."""
    assert {file for file in importers("safetensors") if not file.startswith("toy/")} == {"checkpoint/shards.py"}


def test_methods_and_stages_take_values_not_configs() -> None:
    found = importers("omegaconf") | importers("hydra")
    assert found
    assert all(file.startswith(("cli/", "config/")) for file in found)


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


@pytest.mark.parametrize("group", [*METHODS, "export"])
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
