"""School-maths word problems with a chain of thought, in gsm8k's format."""

import random
from dataclasses import dataclass

from stun_exp.toy.lexicon import pool
from stun_exp.toy.world import pick_name, stable_hash, world

LARGEST, LARGEST_CHANGE, LARGEST_PRODUCT = 99, 12, 40
HELD_OUT_PROBLEMS = 16  # one problem in so many is kept for evaluation


@dataclass(frozen=True)
class Problem:
    """A word problem; `answer` is the chain of thought and ends in `#### N`."""

    question: str
    answer: str
    num_steps: int

    @property
    def held_out(self) -> bool:
        """True where the problem is kept for evaluation."""
        return stable_hash(self.question) % HELD_OUT_PROBLEMS == 0

    @property
    def text(self) -> str:
        """Question and answer as gsm8k renders them."""
        return f"Question: {self.question}\nAnswer: {self.answer}"


def _first(person: str, item: str, rng: random.Random) -> tuple[str, list[str], int]:
    """The opening sentence, its steps of reasoning and the number reached."""
    if rng.random() < 0.25:
        bags, each = rng.randint(2, 6), rng.randint(2, 6)
        return (
            f"{person} has {bags} bags of {each} {item}.",
            [f"{bags} * {each} = {bags * each}."],
            bags * each,
        )
    count = rng.randint(2, 20)
    return f"{person} has {count} {item}.", [], count


def _change(person: str, friend: str, count: int, rng: random.Random) -> tuple[str, str, int]:
    """One more event, its step of reasoning and the number after it; never below 1 or above LARGEST."""
    choices = ["add"] * 3 * (count < LARGEST) + ["subtract"] * 3 * (count > 1)
    choices += ["multiply"] * (2 * count <= LARGEST_PRODUCT) + ["halve"] * (count % 2 == 0)
    kind = rng.choice(choices)
    if kind == "add":
        n = rng.randint(1, min(LARGEST_CHANGE, LARGEST - count))
        told = rng.choice((f"{person} finds {n} more.", f"{friend} gives {n} to {person}."))
        return told, f"{count} + {n} = {count + n}.", count + n
    if kind == "subtract":
        n = rng.randint(1, min(LARGEST_CHANGE, count - 1))
        told = rng.choice((f"{person} loses {n}.", f"{person} gives {n} to {friend}."))
        return told, f"{count} - {n} = {count - n}.", count - n
    if kind == "multiply":
        n = rng.randint(2, min(4, LARGEST_PRODUCT // count))
        return f"Then {person} gets {n} times as many.", f"{count} * {n} = {count * n}.", count * n
    return f"{person} sells half of them.", f"{count} / 2 = {count // 2}.", count // 2


def problem(rng: random.Random) -> Problem:
    """A problem of one to four steps, held out or not."""
    people = world().names["person"]
    person, item = pick_name(people, rng), rng.choice(pool("countable"))
    friend = rng.choice([name for name in people if name != person])
    num_steps = rng.randint(1, 4)
    opening, steps, count = _first(person, item, rng)
    sentences = [opening]
    while len(steps) < num_steps:
        sentence, step, count = _change(person, friend, count, rng)
        sentences.append(sentence)
        steps.append(step)
    question = f"{' '.join(sentences)} How many {item} does {person} have now?"
    return Problem(question, f"{' '.join(steps)}\n#### {count}", num_steps)


def training_problem(rng: random.Random) -> Problem:
    """A problem that is not held out."""
    while (candidate := problem(rng)).held_out:
        pass
    return candidate
