"""Runs exported checkpoints in the programs that users serve them with: `make clients`, into results/clients.*."""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from scripts.clients.ask import ASK, Reference, Refused, reference, run_program, verdict
from scripts.clients.cases import FAMILIES, TOYS, Exported, exchange_experts, exported
from stun_exp.utils.files import read_json_object, write_file
from stun_exp.utils.markdown import text
from stun_exp.utils.progress import prepare_libraries

RESULTS = Path("results")
QUANTIZED = "toy_moe"
GROUP = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"{', '.join((*TOYS, *FAMILIES))}; by default all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of clients.json and clients.md")
    arguments = parser.parse_args()
    prepare_libraries()
    torch.set_num_threads(1)
    with TemporaryDirectory() as work:
        for case in exported(Path(work), arguments.models):
            known = reference(case.folder)
            rows = [row for client in ASK for row in _asked(case, client, known, Path(work))]
            quantized = []
            if (case.model, case.export) == (QUANTIZED, "equal"):
                quantized = [_quantized(case.folder, Path(work), method, known) for method in ("rtn", "gptq")]
            _keep(arguments.out, rows, quantized)


def _asked(case: Exported, client: str, known: Reference, work: Path) -> list[dict[str, Any]]:
    """A row of the case; for a bundled model one more, of what must be rejected."""
    own = {"model": case.model, "export": case.export, "dtype": known.dtype}
    rows = [{**own, **verdict(client, known)}]
    if case.model in TOYS:
        wrong = exchange_experts(case.folder, work / f"{case.model}-exchanged")
        exchanged = verdict(client, known, replace(known, folder=wrong))
        rows.append({**own, "export": "equal, two experts exchanged", **exchanged})
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows


def _quantized(folder: Path, work: Path, method: str, known: Reference) -> dict[str, Any]:
    job = {"folder": str(folder), "method": method, "texts": known.texts, "group_size": GROUP}
    try:
        found = run_program("llmcompressor", "quantize_program", job | {"quantized": str(work / f"{method}-quantized")})
    except Refused as why:
        return {"method": method, "because": str(why)}
    return {"method": method, **found}


def _keep(out: Path, rows: list[dict[str, Any]], quantized: list[dict[str, Any]]) -> None:
    """Puts rows in the place of those of the same cases; what was found of others stays."""
    file = out / "clients.json"
    content = read_json_object(file) if file.is_file() else {"versions": {}, "clients": [], "quantized": []}
    anew = {_case(row) for row in rows}
    kept = [row for row in content["clients"] if _case(row) not in anew]
    order = [*TOYS, *FAMILIES]
    content["clients"] = sorted([*kept, *rows], key=lambda row: order.index(row["model"]))
    content["quantized"] = quantized or content["quantized"]
    content["versions"] |= {
        "python": platform.python_version(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    for row in (*rows, *quantized):
        whose = row.get("client", "llm-compressor")
        content["versions"] |= {f"{name} ({whose})": number for name, number in row.get("versions", {}).items()}
    write_file(file, [(json.dumps(content, indent=1) + "\n").encode()])
    write_file(out / "clients.md", [_page(content["versions"], content["clients"], content["quantized"]).encode()])


def _case(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["export"], row["client"]


def _page(versions: dict[str, str], rows: list[dict[str, Any]], quantized: list[dict[str, Any]]) -> str:
    head = [
        "model",
        "export",
        "dtype",
        "client",
        "computed in",
        "verdict",
        "nats apart",
        "allowed",
        "greedy text equal",
    ]
    lines = [
        [
            row["model"],
            row["export"],
            row["dtype"],
            row["client"],
            row.get("computed_in", "-"),
            _said(row),
            *_numbers(row),
        ]
        for row in rows
    ]
    parts = [
        "# Exported checkpoints in other programs",
        "Made by `make clients` on a CPU. What is compared is not how good a pruned model is, but whether a program "
        "computes the model that transformers computes. Nats apart: the mean difference of a token's log-probability "
        "from transformers in 32 bits. Allowed: twice what transformers itself differs in the dtype that is computed "
        "in, at least 0.001. With two experts exchanged a checkpoint must be rejected.",
        _table(head, lines),
    ]
    if quantized:
        parts += ["## 4 bits after pruning, by llm-compressor", _table(*_zeros(quantized))]
    parts += ["## Versions", _table(["", "version"], [[name, value] for name, value in sorted(versions.items())])]
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *([text(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _said(row: dict[str, Any]) -> str:
    if row["proven"] is None:
        return f"not run: {row['because']}"
    return "proven" if row["proven"] else "rejected"


def _numbers(row: dict[str, Any]) -> list[str]:
    if row["proven"] is None:
        return ["-", "-", "-"]
    difference = row.get("mean_logprob_difference")
    return [
        "-" if difference is None else f"{difference:.2g}",
        f"{row['tolerance']:.2g}" if difference is not None else "-",
        f"{row['greedy_equal']} of {row['prompts']}",
    ]


def _zeros(quantized: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = ["method", "matrices", "weights", "pruned zeros", "still zero"]
    lines = []
    for row in quantized:
        if "because" in row:
            lines.append([row["method"], f"not run: {row['because']}", "-", "-", "-"])
            continue
        share = row["zeros_that_stay"] / max(row["pruned_zeros"], 1)
        numbers = [f"{row[name]:,}" for name in ("matrices", "weights", "pruned_zeros")]
        lines.append([row["method"], *numbers, f"{row['zeros_that_stay']:,} ({share:.2%})"])
    return head, lines


if __name__ == "__main__":
    main()
