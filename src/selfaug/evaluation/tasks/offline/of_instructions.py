"""The items of lm_eval's offline task, and the scores of their answers, from :mod:`selfaug.evaluation.instructions`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from selfaug.evaluation.instructions import Instruction, follows, follows_loosely, requests

__all__ = ["dataset", "mean_of_all", "process_results"]


def dataset(*, items: int, seed: int, **_: Any) -> dict[str, Any]:
    """Return the requests; the arguments are the ``metadata`` of the YAML."""
    import datasets

    rows = [
        {
            "id": f"offline-{number}",
            "prompt": request.prompt,
            "kinds": ", ".join(one.kind for one in request.instructions),
            "instructions": json.dumps([[one.kind, dict(one.arguments)] for one in request.instructions]),
        }
        for number, request in enumerate(requests(items, seed))
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Return whether an answer follows all of a request's instructions, and each one, strictly and loosely."""
    instructions = [Instruction(kind, arguments) for kind, arguments in json.loads(doc["instructions"])]
    strict = [follows(one, results[0]) for one in instructions]
    loose = [follows_loosely(one, results[0]) for one in instructions]
    return {
        "prompt_level_strict_acc": float(all(strict)),
        "prompt_level_loose_acc": float(all(loose)),
        "inst_level_strict_acc": strict,
        "inst_level_loose_acc": loose,
    }


def mean_of_all(items: Sequence[Sequence[bool]]) -> float:
    """Return the share of followed instructions over all requests."""
    return sum(map(sum, items)) / sum(map(len, items))
