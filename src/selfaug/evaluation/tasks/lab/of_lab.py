"""The items of lm_eval's lab tasks, and the checks of their answers, from the lab's own skills."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from selfaug.lab.item import chat, passes
from selfaug.lab.skills import items
from selfaug.lab.world import World

__all__ = ["dataset", "process_results"]


def dataset(*, skill: str, items: int, **_: Any) -> dict[str, Any]:
    """Return the test items of a skill; the arguments are the ``metadata`` of its YAML."""
    import datasets

    rows = [
        {"id": f"{skill}-{number}", "prompt": chat(item.turns), "answer": item.answer, "check": json.dumps(item.check)}
        for number, item in enumerate(_items(skill, items))
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def _items(skill: str, count: int) -> Sequence[Any]:
    return items(skill, "test", count, World.make())


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return an accuracy of 1 where the answer passes the item's check, else 0."""
    return {"acc": float(passes(json.loads(doc["check"]), results[0]))}
