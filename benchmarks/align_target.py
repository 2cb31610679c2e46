r"""Does `--align_target` reach the shift that is asked for, and what does it cost in task score beside fixed weights?

    python benchmarks/align_target.py --shared DIR --data lab mctest --seeds 3 --runs FILE

`lab`: lab:small learns questions with one document, LoRA at 1e-2. `mctest`: stories260k learns MCTest, LoRA at 2e-3.
Each run is trained for one short epoch with the learning rate falling to 0, with a target, a fixed α, or without
alignment (`sft`). After it, on held-out rows: the shift KL(base ‖ tuned) over prompt tokens, from dense logits without
code of ours, and the task: the answers that greedy decoding gives exactly (lab) or their most likely tokens
(mctest), in percent, and their NLL. Each line of FILE is one finished run; a start runs what is missing, seed by seed.

The task at equal shift is interpolated, item by item, between the two fixed α of the same seed whose shifts lie around
the reached one, over log shift. Intervals: 4,000 draws of seeds, then items.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import quiet, table
from numpy.typing import NDArray
from paired import RESAMPLES, middle
from small_runs import Data, Row, base_model, load, trainer_of

from selfaug.data.encode import encode
from selfaug.data.prompts import Renderer
from selfaug.data.read import read_rows
from selfaug.data.record import Record
from selfaug.lab.shipped import resolve
from selfaug.lab.task import Distance, rows
from selfaug.lab.words import Part
from selfaug.lab.world import World

TARGETS = (0.03, 0.06, 0.12, 0.24)
FIXED = (0.25, 1.0, 4.0, 16.0)
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    **{f"alpha {alpha:g}": {"alpha": alpha} for alpha in FIXED},
    **{f"target {target:g}": {"align_target": target} for target in TARGETS},
}


class Recipe(NamedTuple):
    """A training: rows that are trained and held out, rows of a batch, learning rate."""

    train: int
    held_out: int
    batch: int
    rate: float


RECIPES = {"lab": Recipe(240, 400, 4, 1e-2), "mctest": Recipe(80, 30, 2, 2e-3)}


def _lab_small(recipe: Recipe) -> Data:
    from transformers import AutoTokenizer

    checkpoint = Path(resolve("lab:small"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def encoded(part: Part, count: int) -> list[Row]:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            made = rows(part, count, World.make(), Distance(documents=1))
            file.write("".join(json.dumps(row) + "\n" for row in made))
            file.flush()
            records = [item for item in read_rows(Path(file.name)).items if isinstance(item, Record)]
        renderer = Renderer.for_tokenizer(tokenizer)
        return [Row(**row) for row in encode(records, tokenizer, renderer, max_length=None).rows]

    return Data(checkpoint, tokenizer, encoded("train", recipe.train), encoded("test", recipe.held_out), [])


def data_of(name: str, shared: Path, recipe: Recipe) -> Data:
    """The model, training rows and held-out rows of a world."""
    if name == "lab":
        return _lab_small(recipe)
    whole = load(shared, name)
    return Data(whole.checkpoint, whole.tokenizer, whole.train[: recipe.train], whole.answers[: recipe.held_out], [])


@torch.no_grad()
def log_probabilities(model: Any, row: Row) -> Any:
    """Next-token log-probabilities of a row, T - 1 x V, from dense logits."""
    return model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1].float().log_softmax(-1)


def measured(model: Any, held_out: Sequence[Row], base: Sequence[Any]) -> dict[str, Any]:
    """The shift on prompts (nats a token), and for each row: NLL, tokens, right tokens of the answer."""
    model.eval()
    nats = tokens = 0.0
    items = []
    for row, q in zip(held_out, base, strict=True):
        p, labels = log_probabilities(model, row), torch.tensor(row.labels)
        prompt = (labels[:-1] == -100) & (labels[1:] == -100)
        nats += float((q.exp() * (q - p)).sum(-1)[prompt].sum())
        tokens += int(prompt.sum())
        answer = labels[1:] != -100
        own = labels[1:][answer]
        nll = -p[answer].gather(1, own[:, None]).sum()
        items.append([float(nll), len(own), int((p[answer].argmax(-1) == own).sum())])
    return {"shift": nats / tokens, "items": items}


def run(data: Data, base: Sequence[Any], name: str, seed: int, recipe: Recipe) -> dict[str, Any]:
    """One training and what it left."""
    start = time.process_time()
    training = {
        "learning_rate": recipe.rate, "per_device_train_batch_size": recipe.batch, "num_train_epochs": 1
    }  # fmt: skip
    with trainer_of(data, {**training, **SETTINGS[name]}, seed) as trainer:
        trainer.train()
    logs = [
        [line["step"], *(line.get(key) for key in ("nll", "alignment", "alpha", "shift"))]
        for line in trainer.state.log_history if "nll" in line
    ]  # fmt: skip
    return {**measured(trainer.model, data.answers, base), "logs": logs, "seconds": time.process_time() - start}


def scores(run: dict[str, Any], data: str) -> NDArray[np.float64]:
    """For each item: right, of how many, NLL, tokens. In the lab an answer is right as a whole."""
    nll, tokens, right = np.array(run["items"], dtype=float).T
    if data == "lab":
        return np.stack([right == tokens, np.ones_like(tokens), nll, tokens], axis=1)
    return np.stack([right, tokens, nll, tokens], axis=1)


def at_equal_shift(found: dict[str, Any], fixed: Sequence[dict[str, Any]], data: str) -> NDArray[np.float64] | None:
    """The items' scores less those of the fixed weights at the same shift; ``None`` outside their range."""
    ordered = sorted(fixed, key=lambda one: one["shift"])
    for low, high in pairwise(ordered):
        if low["shift"] <= found["shift"] <= high["shift"]:
            part = math.log(found["shift"] / low["shift"]) / math.log(high["shift"] / low["shift"])
            there = (1 - part) * scores(low, data) + part * scores(high, data)
            mine = scores(found, data)
            return np.stack([mine[:, 0] - there[:, 0], mine[:, 1], mine[:, 2] - there[:, 2], mine[:, 3]], axis=1)
    return None


def intervals(differences: NDArray[np.float64]) -> list[tuple[float, float, float]]:
    """Of points and nats: mean and 95 % interval over draws of seeds, then items; seeds x targets x items x 4."""
    draw = np.random.default_rng(0)
    seeds, _, items, _ = differences.shape

    def statistic(values: NDArray[np.float64]) -> tuple[float, float]:
        total = values.reshape(-1, 4).sum(0)
        return 100 * total[0] / total[1], total[2] / total[3]

    drawn = [
        statistic(differences[draw.integers(0, seeds, seeds)][:, :, draw.integers(0, items, items)])
        for _ in range(RESAMPLES)
    ]
    return [
        (mean, *middle(np.array(values)))
        for mean, values in zip(statistic(differences), zip(*drawn, strict=True), strict=True)
    ]


def shown(done: Sequence[dict[str, Any]], data: str) -> Iterator[str]:
    """The tables of a world."""
    runs = {(one["setting"], one["seed"]): one for one in done if one["data"] == data}
    seeds = sorted({seed for _, seed in runs})
    lines = []
    for name in dict.fromkeys(name for name, _ in runs):
        found = [runs[name, seed] for seed in seeds if (name, seed) in runs]
        sums = sum(scores(one, data).sum(0) for one in found)
        trained = [one["logs"][-1][4] for one in found]
        alphas = [one["logs"][-1][3] for one in found]
        lines.append([
            name, str(len(found)), " ".join(f"{one['shift']:.3f}" for one in found),
            " ".join("" if each is None else f"{each:.3f}" for each in trained),
            " ".join("" if each is None else f"{each:.3g}" for each in alphas),
            f"{100 * sums[0] / sums[1]:.1f}", f"{sums[2] / sums[3]:.3f}",
        ])  # fmt: skip
    head = ["setting", "seeds", "shift, held out", "shift, last steps", "last α", "task, %", "answer NLL"]
    yield f"{data}\n\n{table(head, lines)}\n"
    pairs: dict[float, dict[int, NDArray[np.float64]]] = {}
    for seed in seeds:
        fixed = [runs[f"alpha {alpha:g}", seed] for alpha in FIXED if (f"alpha {alpha:g}", seed) in runs]
        for target in TARGETS:
            one = runs.get((f"target {target:g}", seed))
            pair = None if one is None else at_equal_shift(one, fixed, data)
            if pair is not None:
                pairs.setdefault(target, {})[seed] = pair
    whole = [seed for seed in seeds if pairs and all(seed in each for each in pairs.values())]
    if not whole:
        return
    differences = np.array([[each[seed] for each in pairs.values()] for seed in whole])
    parts = {f"{target:g}": differences[:, [place]] for place, target in enumerate(pairs)} | {"all": differences}
    lines = [
        [name, *(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in intervals(part))]
        for name, part in parts.items()
    ]
    yield f"target less fixed α at equal shift, {len(whole)} seeds\n"
    yield table(["target", "task, points", "answer NLL, nats"], lines) + "\n"


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="Folder with models/stories260k and data/.")
    parser.add_argument("--data", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, required=True, help="JSON lines of finished runs; kept and added to.")
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    args = parser.parse_args()
    quiet()
    done = [json.loads(line) for line in args.runs.read_text().splitlines()] if args.runs.exists() else []
    worlds: dict[str, tuple[Data, list[Any]]] = {}
    wanted = [(seed, data, name) for seed in range(args.seeds) for data in args.data for name in args.only]
    for seed, data, name in wanted:
        recipe = RECIPES[data]
        key = {"data": data, "setting": name, "seed": seed, "recipe": list(recipe), **SETTINGS[name]}
        if any(key.items() <= one.items() for one in done):
            continue
        if data not in worlds:
            made = data_of(data, args.shared, recipe)
            model = base_model(made).eval()
            worlds[data] = made, [log_probabilities(model, row) for row in made.answers]
        done.append({**key, **run(*worlds[data], name, seed, recipe)})
        with args.runs.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    for data in args.data:
        print("\n".join(shown([one for one in done if one["recipe"] == list(RECIPES[data])], data)))


if __name__ == "__main__":
    main()
