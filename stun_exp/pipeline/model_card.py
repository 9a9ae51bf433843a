"""The model card of a pruned checkpoint: what was done to the model, what is left of it, and how to use it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stun_exp.utils import markdown

METHODS = {
    "expert_pruner": "experts",
    "allocation": "allocation",
    "unstructured_pruner": "weights",
    "recovery": "training afterwards",
}


def command_of(out: Path) -> str | None:
    """The command line of a run, from what Hydra noted in the run's folder; None if it was started otherwise."""
    overrides = out / ".hydra" / "overrides.yaml"
    return shlex.join(["stun", *yaml.safe_load(overrides.read_bytes())]) if overrides.is_file() else None


def model_card(report: Mapping[str, Any], command: str | None) -> str:
    """README.md of a pruned checkpoint, without anything that differs when the same run is made again."""
    model, experts, sparsity = report["model"], report["experts"], report["sparsity"]
    zeros = sum(layer["zeros"] for layer in sparsity["per_layer"])
    weights = sum(layer["weights_in_scope"] - layer["removed"] for layer in sparsity["per_layer"])
    lines = [
        "---",
        "library_name: transformers",
        "tags: [mixture-of-experts, pruned]",
        "---",
        "",
        f"# {markdown.text(report['name'])}",
        "",
        f"{markdown.code(model['source'])} ({markdown.text(model['model_type'])}), pruned by stun_exp.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {what} | {markdown.text(_choice(report['settings'][group]))} |" for group, what in METHODS.items()),
        f"| budget | {sparsity['target']:.2%} of the weights in scope ({markdown.text(sparsity['scope'])}) |",
        f"| measured sparsity | {sparsity['achieved']:.2%} of the weights in scope: removed experts and zeros |",
        f"| experts | {sum(experts['after'])} of {sum(experts['before'])} are left |",
        f"| parameters | {model['params_after']:,} of {model['params_before']:,} are stored |",
        "",
    ]
    if zeros:
        lines += [
            f"{zeros:,} of the {weights:,} stored weights in scope are zeros. Zeros are stored like any number: they "
            "save no memory by themselves, and no time unless a runtime makes use of them.",
            "",
        ]
    lines += [*_experts(experts, report.get("export") or {}), ""]
    if command:
        lines += ["## Command", "", markdown.code_block(command, "bash"), ""]
    return "\n".join(lines)


def _choice(settings: Mapping[str, Any]) -> str:
    """A method by the name of its file, with what is set of it."""
    name = str(settings["_target_"]).split(".")[-2]
    values = ", ".join(f"{key}={value}" for key, value in settings.items() if not key.startswith("_"))
    return f"{name} ({values})" if values else name


def _experts(experts: Mapping[str, Any], export: Mapping[str, Any]) -> list[str]:
    """How many are left where, and what loads such a model."""
    before = " ".join(map(str, sorted(set(experts["before"]))))
    after = " ".join(map(str, experts["after"]))
    counts = f"Experts left in each of the {len(experts['after'])} layers that have any ({before} before): {after}."
    if len(set(experts["after"])) == 1:
        return [counts, "All keep equally many, so stock transformers loads the folder."]
    if "padding" in export:
        return [
            counts,
            f"Every layer is filled up to {export['num_experts']} with experts of zeros that the router never chooses "
            f"({export['padding']['bytes'] / 1e6:,.1f} MB), so stock transformers loads the folder.",
        ]
    lines = [
        counts,
        "Stock transformers has no setting for layers that keep different numbers of experts: `stun_exp.load_pruned` "
        "loads the folder.",
    ]
    if "for" in export:
        return [*lines, f"It is written for {markdown.text(export['for'])}."]
    return [*lines, f"So does {markdown.code(export['loads_with'])}."] if "loads_with" in export else lines
