"""Settings and origins of a run (data, weights, versions) as texts for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

__all__ = ["Fact", "origins", "plain", "reached", "settings_of", "short"]

_SETTINGS = (
    "method", "preset", "alpha", "align_target", "align_fraction", "align_direction", "align_boundary", "reference",
    "use_peft", "peft_type", "lora_r", "lora_alpha", "lora_dropout",
    "use_dora", "use_rslora", "lora_target_modules", "lora_modules_to_save", "learning_rate", "lr_scheduler_type",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
    "packing", "bf16", "load_in_4bit", "load_in_8bit", "seed",
)  # fmt: skip
_PLACES = frozenset({"output_dir", "logging_dir", "run_name", "hub_model_id"})
"""Settings that name places and do not affect training."""

Fact = tuple[str, str]
"""A name and its text."""


def short(name: str) -> str:
    """Return the last part of a local path, or a hub name as it is."""
    local = name.startswith(("/", ".", "~"))
    return PurePath(name).name if local else name


def plain(value: Any) -> str:
    """Format the value of a setting."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {plain(inner)}" for name, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings_of(configs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the names of the settings to show first (those that differ, then the usual ones), and of all others."""
    names = list(dict.fromkeys(name for config in configs for name in config))
    differing = [
        name
        for name in names
        if name not in _PLACES and len({plain(config.get(name)) for config in configs}) > 1
    ]  # fmt: skip
    usual = [name for name in _SETTINGS if name in names and any(config.get(name) is not None for config in configs)]
    first = list(dict.fromkeys([*differing, *usual]))
    return first, [name for name in names if name not in first]


def origins(manifest: Mapping[str, Any], results: Mapping[str, Any] | None) -> list[Fact]:
    """Return the origins of a run's numbers."""
    facts: list[Fact] = []

    def add(name: str, value: Any) -> None:
        if value not in (None, "", [], {}):
            facts.append((name, plain(value)))

    finished, model = manifest.get("finished") or {}, manifest.get("model") or {}
    add("trained", finished.get("time") or manifest.get("created"))
    add("model", model.get("name"))
    if model.get("commit") or not str(model.get("name")).startswith(("/", ".", "~")):
        add("revision", " ".join(filter(None, [model.get("revision"), model.get("commit")])))
    add("base weights", model.get("weights"))
    add("tuned weights", finished.get("weights"))
    add("shift of the prompts", reached(finished.get("metrics") or {}))
    add("tokenizer", manifest.get("tokenizer"))
    add("chat template", manifest.get("chat_template"))
    for split, entry in (manifest.get("data") or {}).items():
        if isinstance(entry, Mapping):
            add(f"data, {split}", _data(entry))
    add("seeds", manifest.get("seeds"))
    add("probe_limit broken", finished.get("probe_limit_broken"))
    add("resumed", ", ".join(str(entry.get("checkpoint")) for entry in manifest.get("resumed") or ()))
    add("git", _git(manifest.get("git")))
    add("device", _device(manifest.get("device") or {}))
    add("versions", {name: version for name, version in (manifest.get("versions") or {}).items() if version})
    add("command", " ".join(manifest.get("command") or ()))
    if results is not None:
        add("evaluated", results["created"])
        add("evaluation seeds", results["seeds"])
        add("evaluation device", _device(results["device"]))
        add("evaluation versions", {name: version for name, version in results["versions"].items() if version})
        add("evaluation command", " ".join(map(str, results["command"])))
        for part, body in results["parts"].items():
            add(f"{part}, prompts", body["prompts"])
    return facts


def reached(metrics: Mapping[str, Any]) -> str | None:
    """Return the shift that a training with ``align_target`` reached, beside the one asked for; ``None`` without one.

    Args:
        metrics: Metrics of the finished training.
    """
    if metrics.get("align_target") is None or metrics.get("shift") is None:
        return None
    shift, target, alpha = (metrics[name] for name in ("shift", "align_target", "alpha"))
    return f"{shift:.3g} nats a token at the end of training, {target:.3g} asked; α {alpha:.3g}"


def _data(entry: Mapping[str, Any]) -> str:
    files = [f"{short(str(file.get('path', '')))} {file.get('hash', '')}" for file in entry.get("files") or ()]
    return "; ".join([f"{entry.get('rows', '?')} rows", *(files or [str(entry.get("name", ""))])])


def _git(state: Any) -> str:
    if not isinstance(state, Mapping):
        return ""
    return f"{state.get('commit', '')}{' with uncommitted changes' if state.get('changed') else ''}"


def _device(device: Mapping[str, Any]) -> str:
    accelerators = device.get("accelerators") or []
    parts = [", ".join(map(str, accelerators)) or "CPU"]
    if device.get("cpu_cores"):
        parts.append(f"{device['cpu_cores']} cores")
    if (device.get("processes") or 1) > 1:
        parts.append(f"{device['processes']} processes")
    return ", ".join([*parts, *filter(None, [device.get("system")])])
