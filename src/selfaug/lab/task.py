"""The RAG task of the lab, at an adjustable distance from the base's training data.

Questions are about unknown lands, with titled documents of which most are about other lands. The base has seen neither
documents nor titles nor these lands. Training and test part share no land, town, river or person.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.lab.skills.reading import ABSTENTION
from selfaug.lab.words import Part
from selfaug.lab.world import RELATIONS, Land, World, make_land, statement, value

__all__ = ["Distance", "rows"]

_FILLERS = (
    "It lies in the north.", "The winters are long there.", "Many ships call there.", "It is a quiet land.",
    "Few people travel so far.", "The roads are good.", "Its people like to sing.", "It is known for its wool.",
)  # fmt: skip
_ASKS = ("What is the {r} of {l}?", "Which is the {r} of {l}?", "Tell me the {r} of {l}.")


@dataclass(frozen=True)
class Distance:
    """The settings of the task, which set its distance from the base's training data.

    The rows depend on the names of these fields as well as on their values.

    Args:
        documents: Number of documents of a question, 1 to 20.
        sentences: Number of filler sentences of each document, which state no fact.
        told: Number of facts that a document states about its land, 1 to 5.
        known: Share of the distractors that are about lands which the base knows by heart.
        terse: Whether answers are single names; else they are sentences like the base's.
        unanswerable: Share of the questions that no document answers.
        outdated: Share of the questions with an outdated document that contradicts the current one.

    Raises:
        ConfigError: If a setting is out of range.
    """

    documents: int = 4
    sentences: int = 1
    told: int = 3
    known: float = 0.25
    terse: bool = True
    unanswerable: float = 0.15
    outdated: float = 0.1

    def __post_init__(self) -> None:
        for name, least, most in (("documents", 1, 20), ("sentences", 0, 200), ("told", 1, len(RELATIONS))):
            given = getattr(self, name)
            if not least <= given <= most:
                raise ConfigError(f"{name}={given} is out of range for the lab's task.", f"give {least} to {most}.")
        for name in ("known", "unanswerable", "outdated"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not a share.", "give a number from 0 to 1.")


def rows(part: Part, count: int, world: World, distance: Distance | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Return ``count`` rows of canonical JSONL (`selfaug.Record`), a function of the arguments."""
    distance = distance or Distance()
    rng = random.Random(f"task {part} {seed} {distance}")
    return [{"id": f"{part}-{seed}-{i}", **_row(rng, part, world, distance)} for i in range(count)]


def _row(rng: random.Random, part: Part, world: World, distance: Distance) -> dict[str, Any]:
    pool = world.unknown(part)
    name, *others = rng.sample(pool, min(distance.documents, len(pool)))
    land, relation = make_land(rng, name, part), rng.choice(list(RELATIONS))
    answerable = rng.random() >= distance.unanswerable
    outdated = answerable and distance.documents > 1 and rng.random() < distance.outdated
    documents = []
    if answerable:
        documents.append(_document(rng, land, distance, needs=relation, title=f"{name} (new)" if outdated else name))
    elif rng.random() < 0.5:  # a document about the land, without the answer
        documents.append(_document(rng, land, distance, without=relation))
    if outdated:
        old = Land(name, {**land.facts, relation: _other(rng, relation, part, land.facts[relation])})
        documents.append(_document(rng, old, distance, needs=relation, title=f"{name} (old)"))
    others += [other for other in rng.sample(pool, len(pool)) if other != name and other not in others]
    while len(documents) < distance.documents:
        known = rng.random() < distance.known
        other = rng.choice(world.lands) if known else make_land(rng, others.pop(0), part)
        if all(document["title"] != other.name for document in documents):
            documents.append(_document(rng, other, distance))
    rng.shuffle(documents)
    row: dict[str, Any] = {"question": rng.choice(_ASKS).format(r=relation, l=name), "documents": documents}
    if not answerable:
        return {**row, "answerable": False, "answer": ABSTENTION}
    fact = land.facts[relation]
    whole = statement(relation, name, fact)
    forms = [fact, whole, f"the {fact}"]
    return {**row, "answer": forms if distance.terse else [whole, fact, f"the {fact}"]}


def _document(
    rng: random.Random, land: Land, distance: Distance, *, needs: str | None = None, without: str | None = None,
    title: str | None = None,
) -> dict[str, str]:  # fmt: skip
    relations = [relation for relation in RELATIONS if relation not in (needs, without)]
    chosen = rng.sample(relations, min(len(relations), distance.told - (needs is not None)))
    sentences = [statement(relation, land.name, land.facts[relation]) for relation in [*chosen, *filter(None, [needs])]]
    sentences += [rng.choice(_FILLERS) for _ in range(distance.sentences)]
    rng.shuffle(sentences)
    return {"title": title or land.name, "text": " ".join(sentences)}


def _other(rng: random.Random, relation: str, part: Part, current: str) -> str:
    while True:
        other = value(rng, relation, part)
        if other != current:
            return other
