"""Trains a bundled toy model and measures it; by default exactly as the shipped weights were made."""

import argparse
import dataclasses
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.toy.probe import accuracies, expert_shares
from scripts.toy.recipes import TOYS
from scripts.toy.tokenizer import train_tokenizer
from scripts.toy.training import ship, train
from scripts.toy.upcycling import start
from stun_exp.toy import MODELS

CHECKPOINT_EVERY = 250
MIN_EXPERT_SHARE = 0.1
CALIBRATION_DOCUMENTS = 2000


def main() -> int:
    """0, or 1 where an expert of the trained model sees less than a tenth of an equal share of tokens."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    phases = list(TOYS[arguments.model])
    if arguments.steps is not None:
        phases[-1] = dataclasses.replace(
            phases[-1], recipe=dataclasses.replace(phases[-1].recipe, steps=arguments.steps)
        )
    tokenizer = train_tokenizer()
    console = Console()
    log = (arguments.work / "log.jsonl").open("a", encoding="utf-8")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    began = time.monotonic()

    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("training", total=sum(phase.recipe.steps for phase in phases))

        def report(step: int, measured: dict[str, float], done: int) -> None:
            record = {"step": done + step} | {name: round(value, 4) for name, value in measured.items()}
            log.write(json.dumps(record) + "\n")
            log.flush()
            progress.update(bar, completed=done + step, description=f"loss {measured['loss']:.3f}")
            if not console.is_terminal and step % CHECKPOINT_EVERY == 0:
                console.print(record)

        model, done = None, 0
        for number, phase in enumerate(phases, 1):
            if model is not None:
                ship(model, tokenizer, arguments.work / f"phase{number - 1}")
            model = train(
                phase.recipe,
                start(phase, tokenizer, model),
                tokenizer,
                device=device,
                checkpoint=arguments.work / f"phase{number}.pt",
                checkpoint_every=CHECKPOINT_EVERY,
                report=partial(report, done=done),
            )
            done += phase.recipe.steps
    assert model is not None, "a toy has at least one phase"
    seconds = time.monotonic() - began
    ship(model, tokenizer, arguments.out or MODELS.get(arguments.model, Path("toys") / arguments.model))
    shares_LE = expert_shares(model, tokenizer, CALIBRATION_DOCUMENTS)
    least = shares_LE[shares_LE.sum(1) > 0].min().item()  # a layer without experts leaves a row of zeros
    summary = {
        "seconds": round(seconds),
        "least_expert_share": round(least, 3),
        **accuracies(model, tokenizer),
    }
    log.write(json.dumps(summary) + "\n")
    console.print(summary)
    if least < MIN_EXPERT_SHARE:
        console.print(f"an expert sees {least:.3f} of an equal share of tokens; raise the recipe's balance_weight")
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=TOYS, default="toy_moe")
    parser.add_argument("--steps", type=int, help="of the last phase; by default those of its recipe")
    parser.add_argument("--out", type=Path, help="by default the bundled model's folder, or toys/MODEL")
    parser.add_argument(
        "--work", type=Path, default=Path("toy_training"), help="checkpoint and log; resumed if present"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
