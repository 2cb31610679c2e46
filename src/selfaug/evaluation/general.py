"""Scores of base and tuned model on general tasks: lm_eval's scores, the items' values, and paired intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfaug.common.fingerprint import text_hash
from selfaug.evaluation.results import SIDES, items_of, metric
from selfaug.evaluation.suites import GeneralTask

__all__ = ["general_metrics", "recorded", "side_samples"]

_USUAL = (
    "prompt_level_strict_acc", "exact_match", "math_verify", "pass@1", "pass_at_1", "acc_norm", "acc", "mc2", "f1",
    "word_perplexity",
)  # fmt: skip


def recorded(output: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the parts of lm_eval's output that are stored, as JSON of finite numbers."""
    results = output["results"]
    tables: dict[str, Any] = {}
    for task, row in {**results, **(output.get("groups") or {})}.items():
        for label, number in row.items():
            key, comma, chosen = label.partition(",")
            if not comma or key.endswith("_stderr") or not isinstance(number, (int, float)):
                continue
            stderr = row.get(f"{key}_stderr,{chosen}")
            known = isinstance(stderr, (int, float)) and math.isfinite(stderr)
            tables.setdefault(task, {})[_label(key, chosen)] = {
                "metric": key,
                "filter": chosen,
                "value": float(number),
                "stderr": float(stderr) if known else None,
                "higher_is_better": bool((output["higher_is_better"].get(task) or {}).get(key, True)),
            }
    items: dict[str, dict[int, dict[str, Any]]] = {}
    for task, samples in output["samples"].items():
        for sample in samples:
            item = items.setdefault(task, {}).setdefault(int(sample["doc_id"]), _item(task, sample))
            for key in sample["metrics"]:
                item["values"][_label(key, sample["filter"])] = _value(sample[key])
    return {
        "name": name,
        "tables": tables,
        "versions": {task: str(version) for task, version in output["versions"].items()},
        "shots": {task: shots for task, shots in output["n-shot"].items() if isinstance(shots, int)},
        "samples": [item for task in sorted(items) for _, item in sorted(items[task].items())],
    }


def _label(metric_name: str, chosen: str) -> str:
    return metric_name if chosen == "none" else f"{metric_name}/{chosen}"


def _item(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    document = sample["doc"] if isinstance(sample["doc"], Mapping) else {}
    name = document.get("id", document.get("key", sample["doc_id"]))
    first = sample["arguments"][0][0] if sample["arguments"] else ""
    response = sample["filtered_resps"]
    while isinstance(response, (list, tuple)) and len(response) == 1:
        response = response[0]
    if not isinstance(response, str):
        # The log-likelihoods of the choices take the place of an answer.
        response = " | ".join(str(part[0]) if isinstance(part, (list, tuple)) else str(part) for part in response)
    return {
        "subtask": task,
        "id": str(name),
        "index": int(sample["doc_id"]),
        "prompt": str(first),
        "prompt_hash": str(text_hash(str(first))),
        "expected": [str(sample["target"])],
        "response": response,
        "values": {},
    }


def _value(raw: Any) -> float | list[float] | None:
    """Return a number, ``[sum, count]`` of a list of numbers, or ``None`` for anything else."""
    if isinstance(raw, (bool, int, float)) or type(raw).__module__ == "numpy":
        return float(raw) if math.isfinite(float(raw)) else None
    if isinstance(raw, list) and raw and all(isinstance(part, (bool, int, float)) for part in raw):
        return [float(sum(raw)), float(len(raw))]
    return None


def side_samples(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the items of both models side by side, as in the sample log.

    Raises:
        AssertionError: If the models did not get the same prompts.
    """
    rows = []
    for one, other in zip(base["samples"], tuned["samples"], strict=True):
        assert (one["subtask"], one["index"], one["prompt_hash"]) == (
            other["subtask"], other["index"], other["prompt_hash"],
        ), "base and tuned saw other prompts"  # fmt: skip
        row = {name: one[name] for name in ("subtask", "id", "index", "prompt", "prompt_hash", "expected")}
        for side, item in zip(SIDES, (one, other), strict=True):
            row[side] = {"response": item["response"], "values": item["values"]}
        rows.append(row)
    return rows


def general_metrics(
    task: GeneralTask,
    base: Mapping[str, Any],
    tuned: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    seed: int,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the metrics of a task or group, and those of a group's tasks, with lm_eval's scores and our intervals.

    Args:
        task: Task or group that was run.
        base: Output of :meth:`Harness.run` for the base model.
        tuned: Output of :meth:`Harness.run` for the tuned model.
        samples: Output of :func:`side_samples`.
        seed: Seed of the bootstrap.
    """
    tables = {side: body["tables"] for side, body in zip(SIDES, (base, tuned), strict=True)}
    leaves = sorted({sample["subtask"] for sample in samples})
    own = tables["base"].get(task.task)
    primary = _primary(task, own or {})
    metrics: dict[str, Any] = {}
    subtasks: dict[str, dict[str, Any]] = {}
    for name in tables["base"]:
        if name != task.task and name not in leaves:
            continue  # a group within the group
        mine = samples if name == task.task else [sample for sample in samples if sample["subtask"] == name]
        entries = {}
        for label, row in tables["base"][name].items():
            other = tables["tuned"].get(name, {}).get(label)
            if other is None:
                continue
            first, second = items_of(mine, label)
            entry = metric(
                first,
                second,
                unit="fraction"
                if 0 <= min(row["value"], other["value"]) <= max(row["value"], other["value"]) <= 1
                else "as reported",
                higher_is_better=row["higher_is_better"],
                primary=name == task.task and label == primary,
                seed=seed,
                reported={"base": (row["value"], row["stderr"]), "tuned": (other["value"], other["stderr"])},
                more={"metric": row["metric"], "filter": row["filter"]},
            )
            if entry is not None:
                entries[label] = entry
        if name == task.task:
            metrics = entries
        else:
            subtasks[name] = entries
    return metrics, subtasks


def _primary(task: GeneralTask, table: Mapping[str, Mapping[str, Any]]) -> str | None:
    wanted = ([task.primary] if task.primary else []) + list(_USUAL)
    for name in wanted:
        for label, row in table.items():
            if row["metric"] == name or label == name:
                return label
    return next(iter(table), None)
