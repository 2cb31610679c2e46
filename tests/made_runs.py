"""Run folders as `train`, `evaluate` and `shift` leave them, made by hand from a few numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from selfaug.common.statistics import Items
from selfaug.evaluation.results import metric, write_results

HOSTILE = "<script>alert(1)</script>"
WEIGHTS = "sha256:" + "7" * 64
Value = float | list[float] | None


def config(**more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": "org/small-model", "method": "selfaug", "alpha": 2.0, "align_fraction": 0.125,
        "use_peft": True, "lora_r": 16, "learning_rate": 2e-3, "seed": 42, "dataset_name": f"{HOSTILE}.jsonl", **more,
    }  # fmt: skip


def log(steps: int = 4) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"step": step, "loss": 5.25 - step / 3, "nll": 5.0 - step / 3, "alignment": step / 70,
         "num_tokens": 4000 * step, "reference_tokens": 1000.0, "tokens_per_second": 1500.5 + step}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    events.append({"step": steps, "eval_loss": 4.5, "eval_nll": 4.25, "eval_alignment": 0.0625})
    return [*events, {"step": steps, "train_runtime": 754.5, "train_loss": 4.4}]


def part(
    name: str,
    group: str,
    metrics: dict[str, tuple[str, bool, Sequence[Value], Sequence[Value]]],
    answers: Sequence[tuple[str, str]] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A part, its samples; ``metrics``: unit, higher is better, base's and tuned's values. The first leads."""
    entries = {
        label: metric(Items.of(list(base)), Items.of(list(tuned)), unit=unit, higher_is_better=higher, primary=not i)
        for i, (label, (unit, higher, base, tuned)) in enumerate(metrics.items())
    }
    count = len(next(iter(metrics.values()))[2])
    samples = []
    for i in range(count):
        sides = {}
        for s, side in enumerate(("base", "tuned")):
            sides[side] = {"values": {label: found[2 + s][i] for label, found in metrics.items()}}
            if answers:
                sides[side]["response"] = answers[i % len(answers)][s]
        about = {"id": f"q{i}", "index": i, "expected": ["Ada & Bo"] if answers else []}
        question = f"Which one? {HOSTILE}" if answers else ""
        samples.append({"part": name, **about, "question": question, "prompt": f"Read: {HOSTILE}", **sides})
    body = {
        "group": group, "name": name.rpartition(":")[2], "key": "sha256:1", "settings": {}, "data": {"rows": count},
        "prompts": "sha256:2", "items": count, "left_out": {"no document fits": 2}, "counts": {},
        "seconds": {"base": 1.0, "tuned": 1.0}, "metrics": entries,
    }  # fmt: skip
    return body, samples


def usual_parts(drop: float = 0.05, gain: float = 0.3) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """200 items: a task that gained, two general ones of which the first lost ``drop``, and a text's NLL."""
    n = 200
    better = [1.0 if i < n * gain else 0.0 for i in range(n)]
    kept = [float(i % 2) for i in range(n)]
    lost = [0.0 if i < 2 * n * drop else value for i, value in enumerate(kept)]
    nll: list[Value] = [[10.0 + i % 7, 8] for i in range(n)]
    risen: list[Value] = [[10.25 + i % 7 + (i % 3) / 8, 8] for i in range(n)]
    answers = [("It was Ada.", f"I think {HOSTILE} it was Bo."), ("", "Ada"), ("same words", "same words")]
    return {
        "task": part("task", "task", {"f1": ("fraction", True, [0.0] * n, better),
                                      "answer_nll": ("nats/token", False, risen, nll)}, answers),
        "general:arc": part("general:arc", "general", {"acc": ("fraction", True, kept, lost)}, answers),
        "general:ifeval": part("general:ifeval", "general", {"strict": ("fraction", True, kept, kept)}),
        "text:news": part("text:news", "general", {"nll": ("nats/token", False, nll, risen)}),
    }  # fmt: skip


def results(parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "schema": 1, "created": "2026-01-02T03:04:05Z", "command": ["selfaug", "evaluate", "run"],
        "run": {"name": "run", "method": "selfaug", "kind": "adapter", "model": "org/small-model"}, "config": {},
        "seeds": {"bootstrap": 0, "train": 42}, "versions": {"selfaug": "0.1.0"},
        "hashes": {"base": "sampled-sha256:1", "tuned": WEIGHTS}, "device": {"system": "Linux", "accelerators": []},
        "parts": parts, **more,
    }  # fmt: skip


def shift(size: float = 0.1, *, general: bool = True, steps: Sequence[int] = (4,)) -> dict[str, Any]:
    def means(scale: float) -> dict[str, Any]:
        two = {name: {"value": size * scale * k, "stderr": 0.004 * scale}
               for name, k in (("base_to_tuned", 1.0), ("tuned_to_base", 1.1))}  # fmt: skip
        # Forgetting that does not follow the shift exactly, or its coefficient has no interval.
        rise = size + 0.3 * size * (1 - size)
        nlls = {
            "base_nll": {"value": 1.5 * scale, "stderr": 0.01},
            "tuned_nll": {"value": 1.5 * scale + rise, "stderr": 0.01},
        }
        return {"tokens": round(12345 * scale), "texts": 24, **two, **nlls}

    regions = {"system": means(0.7), "documents": means(1.0), "question": means(1.5), "response": means(3.0)}
    if general:
        regions["general_text"] = means(0.8)
    layers = []
    for number in (1, 2, 3):
        change = {"cosine": 1 - number * size / 50, "norm_change": number * size / 20}
        own = {name: {"value": value, "stderr": 1e-4} for name, value in change.items()}
        layers.append({"layer": number, "regions": {"data": {"tokens": 9, "texts": 3, **own}}})
    entries = [
        {"name": "final" if step == max(steps) else f"checkpoint-{step}", "step": step, "weights": WEIGHTS,
         "regions": regions, "totals": {"prompt": means(1.01 * step / max(steps)), "data": means(1.2)}, "positions": {},
         "layers": layers, "seconds": 1.0}
        for step in steps
    ]  # fmt: skip
    texts = {"files": [{"path": "t.txt", "bytes": 3, "hash": "sha256:5"}], "pieces": 40, "measured": 40}
    data = {"name": "d.jsonl", "files": [{"path": "d.jsonl", "bytes": 3, "hash": "sha256:4"}], "rows": 24,
            "measured": 24, "too_long": 0, "max_length": 512}  # fmt: skip
    return {
        "schema": 1, "unit": "nats per token", "run": {"method": "selfaug", "alpha": 2.0}, "settings": {},
        "sources": {"data": data, "general_text": texts if general else None}, "base": {"name": "b", "weights": "w"},
        "versions": {"torch": "2.13.0"}, "device": {}, "checkpoints": entries,
    }  # fmt: skip


def manifest(**more: Any) -> dict[str, Any]:
    return {
        "schema": 1, "created": "2026-01-01T00:00:00Z", "command": ["selfaug", "train", HOSTILE], "config": "sha256:3",
        "data": {"train": {"name": "d", "rows": 224, "files": [{"path": f"/home/me/{HOSTILE}", "hash": "sha256:4"}]}},
        "model": {"name": "org/small-model", "revision": "main", "commit": None, "weights": "sampled-sha256:1"},
        "tokenizer": "sha256:6", "chat_template": None, "seeds": {"seed": 42}, "versions": {"torch": "2.13.0"},
        "device": {"system": "Linux", "cpu_cores": 2, "processes": 1, "accelerators": []}, "git": None,
        "finished": {"time": "2026-01-01T00:10:00Z", "steps": 4, "weights": WEIGHTS}, **more,
    }  # fmt: skip


def make_run(
    folder: Path,
    *,
    settings: dict[str, Any] | None = None,
    parts: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] | None = None,
    moved: dict[str, Any] | None = None,
    logged: bool = True,
    finished: bool = True,
) -> Path:
    """A run folder with what is given; everything else is missing."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(**(settings or {}))))
    (folder / "manifest.json").write_text(json.dumps(manifest()))
    if finished:
        (folder / "adapter").mkdir()
    if logged:
        (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log()))
    if parts:
        write_results(folder / "results.json", results({name: body for name, (body, _) in parts.items()}))
        lines = [json.dumps(sample) + "\n" for _, samples in parts.values() for sample in samples]
        (folder / "samples.jsonl").write_text("".join(lines))
    if moved is not None:
        (folder / "shift.json").write_text(json.dumps(moved))
    return folder


def whole_run(folder: Path, size: float = 0.1, **settings: Any) -> Path:
    return make_run(folder, settings=settings, parts=usual_parts(drop=size / 2), moved=shift(size, steps=(2, 4)))
