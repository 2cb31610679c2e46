"""Which runs do studies on small models compare, and what do pairs of the same seeds and items say?"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from small_runs import LORA, METHODS, PROMPT, TRAINING, Data, base_model, load, nll, train

from selfaug.lab.model import weights_hash

RESAMPLES = 4000
LOSSES = ("general", "answers")


def mean(items: Sequence[tuple[float, int]]) -> float:
    """Nats per token."""
    return sum(nats for nats, _ in items) / sum(tokens for _, tokens in items)


def collect(
    shared: Path, methods: Sequence[str], seeds: int, file: Path | None, source: str = "mctest", **training: Any
) -> tuple[Data, dict[str, Any], Any]:
    """The data, the base model's losses, and the runs by method; runs of the same settings in ``file`` are kept.

    ``training`` stands over the plain training's settings.
    """
    data = load(shared, source)
    model = base_model(data)
    weights = weights_hash(model)  # the lab's model may be made anew under the same name
    base = {"general": nll(model, data.general), "answers": nll(model, data.answers)}
    known: dict[str, dict[str, Any]] = {}
    if file is not None and file.exists():
        known = {line["key"]: line for line in map(json.loads, file.read_text().splitlines())}
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for method in methods:
            here = {"torch": torch.__version__, "data": source}
            settings = {**TRAINING, **LORA, **METHODS[method], **PROMPT, **training, **here}
            key = json.dumps([seed, len(data.train), settings, weights], sort_keys=True)
            if key not in known:
                known[key] = {"key": key, **train(data, method, seed, **training)}
                if file is not None:
                    with file.open("a") as lines:
                        lines.write(json.dumps(known[key]) + "\n")
            run = known[key]
            runs.setdefault(method, []).append(run)
            print(
                f"{method}, seed {seed}: general {mean(run['general']):.4f}, answers {mean(run['answers']):.4f}, "
                f"{run['steps']} steps, {run['seconds']:.0f} s",
                file=sys.stderr,
            )
    return data, base, runs


def resampled(runs: Mapping[str, list[dict[str, Any]]], base: dict[str, Any], statistic: Any) -> NDArray[np.float64]:
    """A statistic of token means in draws of seeds, then items, with replacement, the same for all methods."""
    draw = np.random.default_rng(0)
    arrays = {
        (name, what): np.array([run[what] for run in found], dtype=float)
        for name, found in {**runs, "base": [base]}.items()
        for what in LOSSES
    }
    count = min(len(found) for found in runs.values())
    values = []
    for _ in range(RESAMPLES):
        seeds = draw.integers(0, count, count)
        items = {what: draw.integers(0, len(base[what]), len(base[what])) for what in LOSSES}
        means: dict[tuple[str, str], float] = {}
        for (name, what), array in arrays.items():
            picked: NDArray[np.float64] = array[seeds if name != "base" else [0]][:, items[what]]
            means[name, what] = float(picked[..., 0].sum() / picked[..., 1].sum())
        values.append(statistic(means))
    return np.array(values)


def middle(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The interval that leaves out as many values below as above."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference(method: str, other: str, what: str) -> Any:
    """Token mean of ``method`` minus that of ``other``, in nats."""
    return lambda means: means[method, what] - means[other, what]
