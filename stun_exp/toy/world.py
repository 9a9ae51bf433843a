"""The toy world: who and what exists, every fact and craft, and which of them only evaluation asks for."""

import math
import random
import re
import zlib
from dataclasses import dataclass
from functools import cache

from stun_exp.toy.lexicon import ATTRIBUTES, POOLS, SUBJECTS, Attribute, pool

COUNTS = {"person": 240, "place": 96, "thing": 96}
CRAFT_STEPS = 8
WORLD_SEED = 2409
HELD_OUT_FACTS = 4  # one fact in so many is asked in evaluation only
HELD_OUT_TRANSITIONS = 3  # one step-to-step transition of a craft in so many

# Chance spells words that nobody wants to read in a table.
_UNWANTED = re.compile("nig|neg|fag|vag|tit|sex|rap|naz|pus|kak|kik|pis|dik|fuk|bum|pup|pop|sod|nud|bit|fat")


@dataclass(frozen=True)
class Fact:
    """One value of one attribute of one entity, with the other values that the attribute could have had."""

    kind: str
    entity: str
    attribute: Attribute
    value: str
    pool: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """True where no training text may ask for this fact; plain documents still state it."""
        return stable_hash(f"{self.entity}|{self.attribute.noun}") % HELD_OUT_FACTS == 0

    @property
    def questions(self) -> tuple[str, str]:
        """Both ways to ask for the value."""
        article = "a " if self.kind == "thing" else ""
        plain = f"What is the {self.attribute.noun} of {article}{self.entity}?"
        return self.attribute.question.format(e=self.entity), plain


@dataclass(frozen=True)
class World:
    """Names per kind (most frequent first), facts per entity, and the ordered steps that make each thing."""

    names: dict[str, tuple[str, ...]]
    facts: dict[str, tuple[Fact, ...]]
    crafts: dict[str, tuple[str, ...]]

    def subject_facts(self, subject: str) -> list[Fact]:
        """The facts that one subject of the lettered questions may ask for."""
        kind, nouns = SUBJECTS[subject]
        return [fact for name in self.names[kind] for fact in self.facts[name] if fact.attribute.noun in nouns]


def stable_hash(text: str) -> int:
    """A 32-bit hash that is the same in every process and Python version (built-in hash() is not)."""
    return zlib.crc32(text.encode())


def transition_held_out(thing: str, step: int) -> bool:
    """True where what follows step `step` of this craft is told in recipes, never in stories."""
    return stable_hash(f"{thing}>{step}") % HELD_OUT_TRANSITIONS == 0


def _syllables(count: int, rng: random.Random) -> list[str]:
    return rng.sample([onset + vowel for onset in "bdfgklmnprstvz" for vowel in "aeiou"], count)


def _names(rng: random.Random) -> dict[str, tuple[str, ...]]:
    # Few syllables, many pairs: a byte-pair vocabulary then reaches whole names with few intermediate merges.
    endings = {"person": "nrl", "place": ("ham", "ton", "by"), "thing": "kmp"}
    names = {}
    for kind, count in COUNTS.items():
        size = math.isqrt(count) + 2
        firsts = _syllables(size, rng)
        seconds = [syllable + rng.choice(endings[kind]) for syllable in _syllables(size, rng)]
        words = [first + second for first in firsts for second in seconds]
        chosen = rng.sample([word for word in words if not _UNWANTED.search(word)], count)
        names[kind] = tuple(chosen if kind == "thing" else map(str.capitalize, chosen))
    return names


@cache
def world() -> World:
    """The one world there is; built in milliseconds and the same everywhere."""
    rng = random.Random(WORLD_SEED)
    names = _names(rng)
    facts = {}
    for kind, attributes in ATTRIBUTES.items():
        for entity in names[kind]:
            entity_facts = []
            for attribute in attributes:
                values = attribute.values
                words = pool(values) if values in POOLS else names[values]
                entity_facts.append(Fact(kind, entity, attribute, rng.choice(words), words))
            facts[entity] = tuple(entity_facts)
    steps = [f"{verb} the {noun}" for verb in pool("verb") for noun in pool("object")]
    crafts = {thing: tuple(rng.sample(steps, CRAFT_STEPS)) for thing in names["thing"]}
    return World(names, facts, crafts)


def pick_name(names: tuple[str, ...], rng: random.Random) -> str:
    """A name, the first of the list four times as often as the last: some facts are rarer than others."""
    # Density falling linearly from 8/5 to 2/5: a mixture of a uniform and a triangular draw.
    position = rng.random() if rng.random() < 0.4 else min(rng.random(), rng.random())
    return names[int(position * len(names))]
