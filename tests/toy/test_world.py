"""The toy world is the same everywhere, its maths is right, its text holds no evaluation item."""

import random
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from itertools import chain, islice, pairwise

import pytest

from scripts.toy.recipes import RECIPE
from stun_exp.toy.benchmarks import benchmark_items
from stun_exp.toy.lexicon import SUBJECTS
from stun_exp.toy.maths import problem
from stun_exp.toy.text import calibration_documents, held_out_documents, lettered, training_documents
from stun_exp.toy.world import world


def first(documents: Iterable[str], count: int) -> list[str]:
    return list(islice(documents, count))


def test_world_does_not_depend_on_the_process() -> None:
    # Python's own hash() of text changes from process to process; a world built on it would too.
    program = (
        "from itertools import islice; from stun_exp.toy.text import training_documents; import zlib;"
        "print(zlib.crc32('|'.join(islice(training_documents(3), 200)).encode()))"
    )
    prints = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert prints[0] == prints[1] != ""


def test_names_and_facts_are_unambiguous() -> None:
    names = list(chain.from_iterable(world().names.values()))
    assert len(names) == len(set(names))
    facts = list(chain.from_iterable(world().facts.values()))
    assert len({(fact.entity, fact.attribute.noun) for fact in facts}) == len(facts) > 2000
    assert all(fact.value in fact.pool for fact in facts)
    assert all(len(set(steps)) == len(steps) for steps in world().crafts.values())


def evaluate_chain(question: str, answer: str) -> int:
    """The number a chain of thought reaches; every step is checked, every number is told or computed."""
    *steps, final = re.split(r"\. |\.\n#### ", answer)
    known = [int(n) for n in re.findall(r"\d+", question)] + [2]  # "half" is the one number told in a word
    result = None
    for step in steps:
        match = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", step)
        assert match, step
        left, sign, right, stated = int(match[1]), match[2], int(match[3]), int(match[4])
        assert left == result or (result is None and left in known)
        assert right in known
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        assert result == stated
        assert sign != "/" or left % right == 0
    assert result == int(final)
    return result


def test_chains_of_thought_are_right() -> None:
    rng = random.Random(0)
    reached = set()
    for _ in range(2000):
        candidate = problem(rng)
        result = evaluate_chain(candidate.question, candidate.answer)
        assert 1 <= result <= 99
        assert candidate.answer.count("=") == candidate.num_steps
        reached.add(candidate.num_steps)
    assert reached == {1, 2, 3, 4}


def test_story_of_events_gives_the_stated_number() -> None:
    # Reads the question, not the chain: a chain that is consistent in itself could still tell another story.
    for item in benchmark_items()["gsm8k"]:
        opening, *events, _ = re.split(r"(?<=[.?]) ", item["question"])
        person = opening.split()[0]
        numbers = [int(n) for n in re.findall(r"\d+", opening)]
        count = numbers[0] * numbers[1] if "bags" in opening else numbers[0]
        for event in events:
            n = int((re.findall(r"\d+", event) or ["0"])[0])
            if "half" in event:
                count //= 2
            elif "times" in event:
                count *= n
            elif "finds" in event or event.endswith(f"to {person}."):
                count += n
            else:
                assert "loses" in event or event.startswith(f"{person} gives"), event
                count -= n
        assert item["answer"].endswith(f"#### {count}"), item


@cache
def evaluation_items() -> tuple[set[str], set[str], set[str]]:
    """What no training text may hold: questions as lines, stories with their endings, whole pages."""
    items = benchmark_items()
    asked = {f"Question: {item['question']}" for item in [*items["gsm8k"], *items["arc"]]}
    asked |= {item["question"] for subject in SUBJECTS for item in items[f"mmlu_{subject}"]}
    # The person in a story does not matter: with another one it would still be the same question.
    told = {strip_person(f"{item['ctx']} {item['endings'][item['label']]}") for item in items["hellaswag"]}
    return asked, told, {item["page"] for item in items["text"]}


def leaks(documents: Iterable[str]) -> list[str]:
    """The documents that hold an evaluation question, or an evaluation story with its ending."""
    asked, told, pages = evaluation_items()
    found = []
    for document in documents:
        lines = set(document.split("\n"))
        stories = story_windows(document) if document.startswith("In making") else set()
        if lines & asked or document in pages or told & stories:
            found.append(document)
    return found


def strip_person(story: str) -> str:
    return re.sub(r"\b[A-Z][a-z]+ must", "must", story)


def story_windows(story: str) -> set[str]:
    """Every two steps of a story that follow each other, told as an evaluation item tells them."""
    opening, *rest = strip_person(story).removesuffix(".").split(". Next must ")
    making, step = opening.split(", must ")
    steps = [step, *rest]
    return {f"{making}, must {a}. Next must {b}." for a, b in pairwise(steps)}


def test_leak_detector_finds_each_kind_of_item() -> None:
    items = benchmark_items()
    story = items["hellaswag"][0]
    letters = items["mmlu_customs"][0]
    planted = [
        f"Question: {items['gsm8k'][0]['question']}\nAnswer: {items['gsm8k'][0]['answer']}",
        f"Question: {items['arc'][0]['question']}\nAnswer: x",
        lettered(letters["question"], letters["choices"], letters["answer"]),
        f"{story['ctx']} {story['endings'][story['label']]} Next Zetan must cut the reed.",
        items["text"][0]["page"],
    ]
    assert leaks(planted) == planted


def test_no_evaluation_item_in_training_or_calibration_text() -> None:
    assert not leaks(first(training_documents(0), 10_000))
    assert not leaks(chain.from_iterable(first(training_documents(step), 60) for step in range(100)))
    assert not leaks(first(calibration_documents(0), 1000))


@pytest.mark.slow
def test_no_evaluation_item_in_the_whole_training_stream() -> None:
    # A token has 3.5 characters on average, so counting five reads past the end of every batch.
    room = RECIPE.batch_size * RECIPE.sequence_length
    for step in range(RECIPE.steps):
        documents, tokens = [], 0
        for document in training_documents(RECIPE.seed * 1_000_000 + step):
            documents.append(document)
            tokens += len(document) // 5
            if tokens > room:
                break
        assert not leaks(documents), step


def test_facts_asked_in_evaluation_are_told_in_training_text() -> None:
    # Without this the benchmark would ask for what nobody could know.
    text = "\n".join(first(training_documents(1), 60_000))
    told = set(re.findall(r"(?:of|for) (?:a )?(\w+)(?: is|, the \w+ is) (\w+)\.", text))
    facts = [f for f in chain.from_iterable(world().facts.values()) if f.held_out]
    missing = [fact for fact in facts if (fact.entity, fact.value) not in told]
    assert len(missing) < 0.02 * len(facts), [(fact.entity, fact.attribute.noun) for fact in missing]


def test_streams_share_no_document() -> None:
    training = set(first(training_documents(0), 3000))
    calibration = set(first(calibration_documents(0), 500))
    held_out = set(first(held_out_documents(0), 100))
    maths = set(first(calibration_documents(0, "maths"), 100))
    assert all("####" in document for document in maths)
    assert not training & (calibration | maths)
    assert not training & held_out
    assert not calibration & held_out
