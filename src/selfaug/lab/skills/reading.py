"""The skill of answering from a short passage, without documents or titles.

Passages are about unknown people and ships; each sentence states one fact about one of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from selfaug.lab.item import Item
from selfaug.lab.words import CATEGORIES, Part, names

__all__ = ["ABSTENTION", "NAME", "make", "make_alike", "make_many"]

NAME = "reading"
ABSTENTION = "I don't know"
_OF: Mapping[str, Mapping[str, str]] = {
    "person": {"home": "town", "work": "jobs", "pet": "animals", "food": "foods", "friend": "person"},
    "ship": {"captain": "person", "port": "town", "cargo": "foods", "colour": "colours", "home": "town"},
}
_ASKS = ("What is the {r} of {e}?", "Tell me the {r} of {e}.")
# These come before the question, so that the question always ends at the same distance from the answer.
_BRIEF = ("In one word:", "Be brief:", "In short:")
_FILLERS = (
    "The day was long.",
    "The wind came from the west.",
    "Nobody slept much.",
    "It was cold.",
    "The road was bad.",
)


class _Passage:
    """Sentences, and their facts as {(entity, relation): value}."""

    def __init__(self, rng: random.Random, part: Part, entities: int, count: int, fillers: int) -> None:
        kinds = [rng.choice(list(_OF)) for _ in range(entities)]
        pools = {kind: rng.sample(names(kind, part), min(entities, len(names(kind, part)))) for kind in _OF}
        self.relations = {pools[kind].pop(): _OF[kind] for kind in kinds}
        self.facts: dict[tuple[str, str], str] = {}
        for entity, relations in self.relations.items():
            for relation in rng.sample(list(relations), count):
                pool: Sequence[str] = CATEGORIES.get(relations[relation]) or names(relations[relation], part)
                self.facts[entity, relation] = rng.choice(pool)
        sentences = [f"The {relation} of {entity} is {value}." for (entity, relation), value in self.facts.items()]
        sentences += rng.sample(_FILLERS, fillers)
        rng.shuffle(sentences)
        self.text = " ".join(sentences)

    def ask(self, rng: random.Random, unanswerable: float, brief: float) -> tuple[str, str, dict[str, object]]:
        """Return a question, its answer and its check."""
        pairs = list(self.facts)
        answerable = True
        if rng.random() < unanswerable:
            missing = [(e, r) for e, relations in self.relations.items() for r in relations if (e, r) not in self.facts]
            pairs, answerable = (missing, False) if missing else (pairs, True)
        entity, relation = rng.choice(pairs)
        short = rng.random() < brief
        question = rng.choice(_ASKS).format(r=relation, e=entity)
        question = f"{rng.choice(_BRIEF)} {question}" if short else question
        if not answerable:
            return question, f"{ABSTENTION}." if not short else ABSTENTION, {"contains": [ABSTENTION]}
        value = self.facts[entity, relation]
        if short:
            return question, value, {"exact": [value]}
        return question, f"The {relation} of {entity} is {value}.", {"contains": [value]}


def make(
    rng: random.Random, part: Part, entities: int = 3, count: int = 3, unanswerable: float = 0.1, brief: float = 0.3
) -> Item:
    """Make one question about a passage with ``count`` (at most 5) facts of each of so many entities."""
    passage = _Passage(rng, part, entities, count, 0)
    question, answer, check = passage.ask(rng, unanswerable, brief)
    return Item(NAME, (f"{passage.text} {question}",), answer, check)


def make_alike(rng: random.Random, entities: int, questions: int, brief: float) -> Item:
    """Make questions about one relation of several entities, so that only the entity decides the answer; for training.

    On passages with many relations, a model soon learns the right *kind* of value, guesses among the entities, and
    stays there for long. Here it can only learn to look for the entity.
    """
    kind = rng.choice(list(_OF))
    relation = rng.choice(list(_OF[kind]))
    pool: Sequence[str] = CATEGORIES.get(_OF[kind][relation]) or names(_OF[kind][relation], "train")
    facts = {entity: rng.choice(pool) for entity in rng.sample(names(kind, "train"), entities)}
    text = " ".join(f"The {relation} of {entity} is {value}." for entity, value in facts.items())
    turns: list[str] = []
    for number in range(questions):
        entity = rng.choice(list(facts))
        short = rng.random() < brief
        question = (f"{rng.choice(_BRIEF)} " if short else "") + rng.choice(_ASKS).format(r=relation, e=entity)
        answer = facts[entity] if short else f"The {relation} of {entity} is {facts[entity]}."
        turns += [f"{text} {question}" if number == 0 else question, answer]
    return Item(NAME, tuple(turns[:-1]), answer, {"contains": [facts[entity]]})


def make_many(rng: random.Random, entities: int, count: int, questions: int, unanswerable: float, brief: float) -> Item:
    """Make several questions about one passage as turns of a conversation, for training."""
    passage = _Passage(rng, "train", entities, count, rng.randint(0, 2))
    turns: list[str] = []
    for number in range(questions):
        question, answer, check = passage.ask(rng, unanswerable, brief)
        turns += [f"{passage.text} {question}" if number == 0 else question, answer]
    return Item(NAME, tuple(turns[:-1]), answer, check)
