"""The evaluation items of the toy benchmarks, and the .jsonl files in `tasks/data` that lm-eval reads."""

import json
import random
from pathlib import Path
from typing import Any

from stun_exp.toy.lexicon import SUBJECTS
from stun_exp.toy.maths import problem, training_problem
from stun_exp.toy.text import choices_for, held_out_documents, lettered_choices, story_opening
from stun_exp.toy.world import CRAFT_STEPS, transition_held_out, world

NUM_ITEMS = 224
NUM_FEWSHOT_POOL = 16
NUM_DOCUMENTS = 48
Item = dict[str, Any]


def maths_items(rng: random.Random) -> list[Item]:
    """Held-out word problems, as many of each number of steps, none with a gift.

    Whether a gift adds or subtracts is told by the order of two names alone. A model of this size, trained for this
    long, guesses it (every error of the shipped one is such a guess), and guesses hide what pruning costs.
    """
    items: dict[str, Item] = {}
    wanted = dict.fromkeys(range(1, 5), NUM_ITEMS // 4)
    while any(wanted.values()):
        candidate = problem(rng)
        asked = candidate.held_out and " gives " not in candidate.question
        if asked and wanted[candidate.num_steps] and candidate.question not in items:
            wanted[candidate.num_steps] -= 1
            items[candidate.question] = {"question": candidate.question, "answer": candidate.answer}
    return list(items.values())


def fewshot_items(rng: random.Random) -> list[Item]:
    """Word problems from the training side, to draw examples from."""
    problems = [training_problem(rng) for _ in range(NUM_FEWSHOT_POOL)]
    return [{"question": problem.question, "answer": problem.answer} for problem in problems]


def question_items(rng: random.Random) -> list[Item]:
    """Four-choice questions about held-out facts, answered by the text of a choice."""
    facts = [fact for facts in world().facts.values() for fact in facts if fact.held_out]
    items = []
    for fact in rng.sample(facts, NUM_ITEMS):
        choices, gold = choices_for(fact, rng)
        items.append({"question": rng.choice(fact.questions), "choices": choices, "gold": gold})
    return items


def story_items(rng: random.Random) -> list[Item]:
    """Stories that stop before a step of a craft; wrong endings are steps of this craft and of another."""
    crafts = world().crafts
    transitions = [(t, step) for t in crafts for step in range(CRAFT_STEPS - 1) if transition_held_out(t, step)]
    items = []
    for thing, step in rng.sample(transitions, min(NUM_ITEMS, len(transitions))):
        other = rng.choice([name for name in crafts if name != thing])
        wrong = [s for i, s in enumerate(crafts[thing]) if i not in (step, step + 1)]
        endings = [*rng.sample(wrong, 2), rng.choice([s for s in crafts[other] if s not in crafts[thing]])]
        label = rng.randrange(4)
        endings.insert(label, crafts[thing][step + 1])
        opening = story_opening(thing, rng.choice(world().names["person"]), step)
        items.append({"ctx": opening, "endings": [f"{ending}." for ending in endings], "label": label})
    return items


def lettered_items(subject: str, rng: random.Random) -> list[Item]:
    """Lettered four-choice questions about held-out facts of one subject."""
    facts = [fact for fact in world().subject_facts(subject) if fact.held_out]
    items = []
    for fact in rng.sample(facts, NUM_ITEMS // len(SUBJECTS)):
        choices, gold = lettered_choices(fact)
        items.append({"question": rng.choice(fact.questions), "choices": choices, "answer": gold})
    return items


def document_items() -> list[Item]:
    """Different plain documents that no other stream holds."""
    pages: dict[str, None] = {}
    stream = held_out_documents(0)
    while len(pages) < NUM_DOCUMENTS:
        pages[next(stream)] = None
    return [{"page": page} for page in pages]


def benchmark_items() -> dict[str, list[Item]]:
    """Every file of `tasks/data` by its stem."""
    items = {
        "gsm8k": maths_items(random.Random("gsm8k")),
        "gsm8k_fewshot": fewshot_items(random.Random("gsm8k_fewshot")),
        "arc": question_items(random.Random("arc")),
        "hellaswag": story_items(random.Random("hellaswag")),
        "text": document_items(),
    }
    return items | {f"mmlu_{subject}": lettered_items(subject, random.Random(subject)) for subject in SUBJECTS}


def write_benchmarks(folder: Path) -> None:
    """Writes one .jsonl file per entry of `benchmark_items`."""
    for stem, items in benchmark_items().items():
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (folder / f"{stem}.jsonl").write_text(lines, encoding="utf-8")
