"""What is the RAG task of the lab, and how far does it lie from what the base was trained on?

Questions about lands that nobody has heard of, with titled documents, most of them about other lands. The base has seen
neither documents nor titles nor these lands; training and test share no land, town, river or person.
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
    """How far the task lies from the base's training; each setting moves it.

    Args:
        documents: Documents of a question, 1 to 20.
        sentences: Sentences of filling in each document, which hold no fact; lengths grow with it.
        told: Facts that a document tells of its land, 1 to 5.
        known: Share of the distracting documents that are about lands which the base knows by heart.
        terse: Whether answers are single names; else they are sentences as the base gives them.
        unanswerable: Share of the questions that no document answers.
        outdated: Share of the questions with an old document that contradicts the new one.

    Raises:
        ConfigError: If a setting is out of its range.
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
            found = getattr(self, name)
            if not least <= found <= most:
                raise ConfigError(f"{name}={found} is out of range for the lab's task.", f"give {least} to {most}.")
        for name in ("known", "unanswerable", "outdated"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not a share.", "give a number from 0 to 1.")


def rows(part: Part, count: int, world: World, distance: Distance | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """So many rows of canonical JSONL (`selfaug.Record`): a function of the arguments."""
    distance = distance or Distance()
    rng = random.Random(f"task {part} {seed} {distance}")
    return [{"id": f"{part}-{seed}-{i}", **_row(rng, part, world, distance)} for i in range(count)]


def _row(rng: random.Random, part: Part, world: World, distance: Distance) -> dict[str, Any]:
    pool = world.unknown(part)
    asked, *others = rng.sample(pool, min(distance.documents, len(pool)))
    land, relation = make_land(rng, asked, part), rng.choice(list(RELATIONS))
    answerable = rng.random() >= distance.unanswerable
    outdated = answerable and distance.documents > 1 and rng.random() < distance.outdated
    documents = []
    if answerable:
        documents.append(_document(rng, land, distance, needs=relation, title=f"{asked} (new)" if outdated else asked))
    elif rng.random() < 0.5:  # the land is there, and what is asked is not told of it
        documents.append(_document(rng, land, distance, without=relation))
    if outdated:
        old = Land(asked, {**land.facts, relation: _other(rng, relation, part, land.facts[relation])})
        documents.append(_document(rng, old, distance, needs=relation, title=f"{asked} (old)"))
    others += [name for name in rng.sample(pool, len(pool)) if name != asked and name not in others]
    while len(documents) < distance.documents:
        known = rng.random() < distance.known
        other = rng.choice(world.lands) if known else make_land(rng, others.pop(0), part)
        if all(document["title"] != other.name for document in documents):
            documents.append(_document(rng, other, distance))
    rng.shuffle(documents)
    row: dict[str, Any] = {"question": rng.choice(_ASKS).format(r=relation, l=asked), "documents": documents}
    if not answerable:
        return {**row, "answerable": False, "answer": ABSTENTION}
    told = land.facts[relation]
    whole = statement(relation, asked, told)
    forms = [told, whole, f"the {told}"]
    return {**row, "answer": forms if distance.terse else [whole, told, f"the {told}"]}


def _document(
    rng: random.Random, land: Land, distance: Distance, *, needs: str | None = None, without: str | None = None,
    title: str | None = None,
) -> dict[str, str]:  # fmt: skip
    told = [relation for relation in RELATIONS if relation not in (needs, without)]
    chosen = rng.sample(told, min(len(told), distance.told - (needs is not None)))
    sentences = [statement(relation, land.name, land.facts[relation]) for relation in [*chosen, *filter(None, [needs])]]
    sentences += [rng.choice(_FILLERS) for _ in range(distance.sentences)]
    rng.shuffle(sentences)
    return {"title": title or land.name, "text": " ".join(sentences)}


def _other(rng: random.Random, relation: str, part: Part, told: str) -> str:
    while True:
        other = value(rng, relation, part)
        if other != told:
            return other
