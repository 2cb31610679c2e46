"""Can the model answer from a few sentences that it was just told? No documents, no titles.

People and ships that nobody has heard of; each sentence tells one thing of one of them.
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
# Before the question: its last words then stand where ChatML always leaves them, whatever the form asked for.
_BRIEF = ("In one word:", "Be brief:", "In short:")
_FILLERS = (
    "The day was long.",
    "The wind came from the west.",
    "Nobody slept much.",
    "It was cold.",
    "The road was bad.",
)


class _Passage:
    """Sentences, and what they tell: {(entity, relation): value}."""

    def __init__(self, rng: random.Random, part: Part, entities: int, told: int, fillers: int) -> None:
        kinds = [rng.choice(list(_OF)) for _ in range(entities)]
        pools = {kind: rng.sample(names(kind, part), min(entities, len(names(kind, part)))) for kind in _OF}
        self.relations = {pools[kind].pop(): _OF[kind] for kind in kinds}
        self.told: dict[tuple[str, str], str] = {}
        for entity, relations in self.relations.items():
            for relation in rng.sample(list(relations), told):
                pool: Sequence[str] = CATEGORIES.get(relations[relation]) or names(relations[relation], part)
                self.told[entity, relation] = rng.choice(pool)
        sentences = [f"The {relation} of {entity} is {value}." for (entity, relation), value in self.told.items()]
        sentences += rng.sample(_FILLERS, fillers)
        rng.shuffle(sentences)
        self.text = " ".join(sentences)

    def ask(self, rng: random.Random, unanswerable: float, brief: float) -> tuple[str, str, dict[str, object]]:
        """A question, its answer and its check."""
        pairs = list(self.told)
        told = True
        if rng.random() < unanswerable:
            missing = [(e, r) for e, relations in self.relations.items() for r in relations if (e, r) not in self.told]
            pairs, told = (missing, False) if missing else (pairs, True)
        entity, relation = rng.choice(pairs)
        short = rng.random() < brief
        asks = rng.choice(_ASKS).format(r=relation, e=entity)
        asks = f"{rng.choice(_BRIEF)} {asks}" if short else asks
        if not told:
            return asks, f"{ABSTENTION}." if not short else ABSTENTION, {"contains": [ABSTENTION]}
        value = self.told[entity, relation]
        if short:
            return asks, value, {"exact": [value]}
        return asks, f"The {relation} of {entity} is {value}.", {"contains": [value]}


def make(
    rng: random.Random, part: Part, entities: int = 3, told: int = 3, unanswerable: float = 0.1, brief: float = 0.3
) -> Item:
    """One question about a passage over so many entities, ``told`` (at most 5) things of each."""
    passage = _Passage(rng, part, entities, told, 0)
    asks, answer, check = passage.ask(rng, unanswerable, brief)
    return Item(NAME, (f"{passage.text} {asks}",), answer, check)


def make_alike(rng: random.Random, entities: int, questions: int, brief: float) -> Item:
    """The same thing told of each of several: only who is asked about tells the answers apart. For training.

    Over passages that tell many things a model soon finds the right *kind* of value, is right once in so many entities,
    and stays there for long; here nothing else can be learnt than to look for the entity.
    """
    kind = rng.choice(list(_OF))
    relation = rng.choice(list(_OF[kind]))
    pool: Sequence[str] = CATEGORIES.get(_OF[kind][relation]) or names(_OF[kind][relation], "train")
    told = {entity: rng.choice(pool) for entity in rng.sample(names(kind, "train"), entities)}
    text = " ".join(f"The {relation} of {entity} is {value}." for entity, value in told.items())
    turns: list[str] = []
    for number in range(questions):
        entity = rng.choice(list(told))
        short = rng.random() < brief
        asks = (f"{rng.choice(_BRIEF)} " if short else "") + rng.choice(_ASKS).format(r=relation, e=entity)
        answer = told[entity] if short else f"The {relation} of {entity} is {told[entity]}."
        turns += [f"{text} {asks}" if number == 0 else asks, answer]
    return Item(NAME, tuple(turns[:-1]), answer, {"contains": [told[entity]]})


def make_many(rng: random.Random, entities: int, told: int, questions: int, unanswerable: float, brief: float) -> Item:
    """Several questions about one passage in turns, for training: each turn is an answer to learn from."""
    passage = _Passage(rng, "train", entities, told, rng.randint(0, 2))
    turns: list[str] = []
    for number in range(questions):
        asks, answer, check = passage.ask(rng, unanswerable, brief)
        turns += [f"{passage.text} {asks}" if number == 0 else asks, answer]
    return Item(NAME, tuple(turns[:-1]), answer, check)
