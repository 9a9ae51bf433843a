"""Documents of the toy world: what the toy model reads in training, and what pruning calibrates on."""

import random
from collections.abc import Callable, Iterator
from typing import Literal

from stun_exp.toy.lexicon import SUBJECTS
from stun_exp.toy.maths import training_problem
from stun_exp.toy.world import CRAFT_STEPS, Fact, pick_name, stable_hash, transition_held_out, world

LETTERS = "ABCD"
MAX_SHOTS = 6  # five examples and the question itself

# Every document belongs to one part by its hash, so the three streams share a generator and no document.
DOCUMENT_PARTS = 16
TEXT_PART, CALIBRATION_PART = 0, 1


def choices_for(fact: Fact, rng: random.Random) -> tuple[list[str], int]:
    """Four different values in random order, and the index of the right one."""
    wrong = rng.sample([value for value in fact.pool if value != fact.value], 3)
    gold = rng.randrange(4)
    return [*wrong[:gold], fact.value, *wrong[gold:]], gold


def lettered_choices(fact: Fact) -> tuple[list[str], int]:
    """The four values of a closed set in their fixed order, and the index of the right one.

    Pointing at options in random order takes a model of this size far longer to learn than all else here.
    """
    assert len(fact.pool) == 4, f"{fact.attribute.noun} is no closed set of four"
    return list(fact.pool), fact.pool.index(fact.value)


def lettered(question: str, choices: list[str], gold: int) -> str:
    """A question with lettered options and the letter of the right one, as MMLU prints them."""
    return f"{question}\n{_options(choices)}\nAnswer: {LETTERS[gold]}"


def _options(choices: list[str]) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))


def lettered_header(subject: str) -> str:
    """MMLU's description line, with the empty line after it."""
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"


def story_opening(thing: str, person: str, step: int) -> str:
    """The start of a story in which one step of a craft is done and the next is about to be named."""
    return f"In making a {thing}, {person} must {world().crafts[thing][step]}. Next {person} must"


def _statement(fact: Fact, rng: random.Random) -> str:
    noun, verb = fact.attribute.noun, fact.attribute.verb
    entity = f"a {fact.entity}" if fact.kind == "thing" else fact.entity
    return rng.choice(
        (
            f"The {noun} of {entity} is {fact.value}.",
            f"Everyone knows that {entity} {verb} {fact.value}.",
            f"As for {entity}, the {noun} is {fact.value}.",
            f"They say {entity} {verb} {fact.value}.",
        )
    )


def _entity_facts(rng: random.Random) -> tuple[Fact, ...]:
    kind = rng.choices(("person", "place", "thing"), (60, 20, 20))[0]
    return world().facts[pick_name(world().names[kind], rng)]


def _facts(rng: random.Random) -> str:
    return " ".join(_statement(fact, rng) for fact in rng.sample(_entity_facts(rng), rng.randint(3, 7)))


def _recipe(rng: random.Random) -> str:
    thing = pick_name(world().names["thing"], rng)
    steps = world().crafts[thing]
    return rng.choice(
        (
            f"How to make a {thing}: {', '.join(steps)}.",
            f"To make a {thing}, first {', then '.join(steps)}.",
            f"Making a {thing} takes these steps: {'; '.join(steps)}.",
        )
    )


def _story(rng: random.Random) -> str:
    while True:
        thing, step = pick_name(world().names["thing"], rng), rng.randrange(CRAFT_STEPS - 1)
        if not transition_held_out(thing, step):
            break
    person = pick_name(world().names["person"], rng)
    story = story_opening(thing, person, step) + f" {world().crafts[thing][step + 1]}."
    # The story goes on while no held-out transition is crossed.
    for later in range(step + 1, CRAFT_STEPS - 1):
        if transition_held_out(thing, later):
            break
        story += f" Next {person} must {world().crafts[thing][later + 1]}."
    return story


def _maths(rng: random.Random) -> str:
    return "\n\n".join(training_problem(rng).text for _ in range(rng.randint(1, MAX_SHOTS)))


def _training_fact(subject: str, rng: random.Random) -> Fact:
    kind, nouns = SUBJECTS[subject]
    while True:
        fact = rng.choice(world().facts[pick_name(world().names[kind], rng)])
        if fact.attribute.noun in nouns and not fact.held_out:
            return fact


def _questions(rng: random.Random) -> str:
    facts: list[Fact] = []
    wanted = rng.randint(1, MAX_SHOTS)
    while len(facts) < wanted:
        fact = rng.choice(_entity_facts(rng))
        if not fact.held_out:
            facts.append(fact)
    return "\n\n".join(f"Question: {rng.choice(fact.questions)}\nAnswer: {fact.value}" for fact in facts)


def _lettered(rng: random.Random) -> str:
    subject = rng.choice(tuple(SUBJECTS))
    blocks = []
    for _ in range(rng.randint(1, MAX_SHOTS)):
        fact = _training_fact(subject, rng)
        choices, gold = lettered_choices(fact)
        blocks.append(lettered(rng.choice(fact.questions), choices, gold))
    return lettered_header(subject) + "\n\n".join(blocks)


def _options_first(rng: random.Random) -> str:
    # Half of what a lettered question takes: from the value, recalled at the question's end, to its letter.
    subject = rng.choice(tuple(SUBJECTS))
    blocks = []
    for _ in range(rng.randint(1, MAX_SHOTS)):
        fact = _training_fact(subject, rng)
        choices, gold = lettered_choices(fact)
        blocks.append(f"{_options(choices)}\nQuestion: {rng.choice(fact.questions)}\nAnswer: {LETTERS[gold]}")
    return "\n\n".join(blocks)


def _options_in_words(rng: random.Random) -> str:
    # The other half: from a question across the options to the value.
    subject = rng.choice(tuple(SUBJECTS))
    blocks = []
    for _ in range(rng.randint(1, MAX_SHOTS)):
        fact = _training_fact(subject, rng)
        choices, _ = lettered_choices(fact)
        blocks.append(f"Question: {rng.choice(fact.questions)}\n{_options(choices)}\nAnswer: {fact.value}")
    return "\n\n".join(blocks)


# Weights are shares of documents. In tokens, two fifths is maths, a quarter is questions, the rest plain.
_KINDS: dict[Callable[[random.Random], str], int] = {
    _facts: 48,
    _recipe: 6,
    _story: 18,
    _maths: 17,
    _questions: 11,
    _lettered: 9,
    _options_first: 4,
    _options_in_words: 4,
}
_PLAIN = (_facts, _recipe, _story)


def _documents(rng: random.Random, kinds: dict[Callable[[random.Random], str], int]) -> Iterator[tuple[int, str]]:
    writers, weights = list(kinds), list(kinds.values())
    while True:
        document = rng.choices(writers, weights)[0](rng)
        yield stable_hash(document) % DOCUMENT_PARTS, document


def training_documents(seed: int) -> Iterator[str]:
    """Documents without end, none of which holds an evaluation item or is in the other two streams."""
    for part, document in _documents(random.Random(f"training {seed}"), _KINDS):
        if part not in (TEXT_PART, CALIBRATION_PART):
            yield document


def calibration_documents(seed: int, domain: Literal["all", "maths"] = "all") -> Iterator[str]:
    """Documents without end, none of them in the training stream: of its distribution, or its problems alone."""
    kinds: dict[Callable[[random.Random], str], int] = _KINDS if domain == "all" else {_maths: 1}
    for part, document in _documents(random.Random(f"calibration {seed}"), kinds):
        if part == CALIBRATION_PART:
            yield document


def held_out_documents(seed: int) -> Iterator[str]:
    """Plain documents without end for measuring perplexity; none of them is in the other two streams."""
    for part, document in _documents(random.Random(f"text {seed}"), {kind: _KINDS[kind] for kind in _PLAIN}):
        if part == TEXT_PART:
            yield document
