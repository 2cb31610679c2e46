"""Which runs the study on a real instruct model has, in which order, and how long each will take.

A run is named by its settings alone: the same settings have the same key, whatever machine, and one that is finished
is never repeated. :data:`VERSION` changes where data or measurements change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from selfaug.common.store import Store, key_of
from selfaug.lab.smollm2 import SHA256

__all__ = ["BASE", "STAGES", "Setting", "finished", "hours", "order", "tokens"]

VERSION = 3
RATES = (1e-3, 4e-3, 2e-3, 5e-4, 2e-4)
"""Learning rates; those that say most come first."""
TOKENS = {1: 38_802, 4: 118_209}
"""Tokens of the training rows by number of documents, once through."""
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 6,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
    "bf16": False,
    "dtype": "float32",
    "gradient_checkpointing": False,
}
"""What all trainings share: words of `selfaug train`."""
TRAIN_SPEED, MEASURING = 70.0, {1: 420.0, 4: 900.0}
"""Tokens a second of training and seconds of measuring by number of documents, where no run has told yet."""


@dataclass(frozen=True)
class Setting:
    """One run.

    Args:
        method: Of `selfaug train`; ``base`` for no training.
        rate: Learning rate.
        epochs: Times through the rows.
        documents: In each prompt.
        seed: Of the training.
        options: The method's own, and others that differ from what all share, as sorted pairs.
        scale: What the finished update is multiplied by; below 1 the training is that of 1.
    """

    method: str
    rate: float = 0.0
    epochs: int = 0
    documents: int = 1
    seed: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    scale: float = 1.0

    @property
    def training(self) -> Setting:
        """The run whose adapter this one measures."""
        return Setting(**{**self._fields(), "scale": 1.0})

    @property
    def key(self) -> str:
        """Hash of everything that decides the result, but for the processor's rounding."""
        shared = {} if self.method == "base" else TRAINING
        return key_of({"version": VERSION, "model": SHA256, "training": shared, **self._fields()})

    @property
    def label(self) -> str:
        """The name of the method with its own options."""
        values = [f"{name} {value:g}" if isinstance(value, float | int) else name for name, value in self.options]
        scaled = [] if self.scale == 1 else [f"× {self.scale:g}"]
        return ", ".join([" ".join([self.method, *scaled]), *values])

    @property
    def name(self) -> str:
        """Of its files, before the key."""
        told = f"{self.label} lr{self.rate:g} {self.epochs}ep" if self.epochs else self.label
        told += f" {self.documents}doc seed{self.seed}"
        return re.sub(r"[^A-Za-z0-9.]+", "-", told.replace("×", "x"))

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def to_json(self) -> dict[str, Any]:
        """As it is written into results."""
        return dict(json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Setting:
        """What :meth:`to_json` wrote."""
        return cls(**{**body, "options": tuple((name, value) for name, value in body["options"])})


BASE = Setting("base")


def lora(rate: float, epochs: int = 1, **fields: Any) -> Setting:
    """Plain LoRA."""
    return Setting("sft", rate, epochs, **fields)


def selfaug(rate: float, epochs: int = 1, alpha: float = 2.0, fraction: float = 0.25, **fields: Any) -> Setting:
    """SelfAug with its two settings."""
    return Setting("selfaug", rate, epochs, options=(("align_fraction", fraction), ("alpha", alpha)), **fields)


def rival(method: str, rate: float, epochs: int = 1, **options: float) -> Setting:
    """Another method with its strength."""
    return Setting(method, rate, epochs, options=tuple(sorted(options.items())))


BEST, AROUND = 2e-3, (1e-3, 4e-3)
"""The rate at which LoRA and SelfAug both did best on validation rows after one epoch, and its neighbours."""


def rivals(rate: float) -> list[Setting]:
    """Each rival at several strengths, the middle one first."""
    return [
        *(rival("kl-response", rate, beta=beta) for beta in (0.5, 2.0, 0.125)),
        *(rival("replay", rate, replay_ratio=ratio) for ratio in (0.1, 0.3, 0.03)),
        *(rival("ewc", rate, ewc_weight=weight) for weight in (1.0, 16.0, 256.0)),
        *(rival("tmkl", rate, mask_weight=weight) for weight in (0.5, 2.0, 0.125)),
        *(rival("prompt-nll", rate, prompt_weight=weight) for weight in (0.1, 1.0)),
        *(rival("cfs", rate, cfs_ratio=ratio) for ratio in (0.1, 0.03)),
    ]


STAGES: Mapping[str, Sequence[Setting]] = {
    "base": [BASE],
    "LoRA and SelfAug, one epoch": [each(rate) for rate in RATES for each in (lora, selfaug)],
    "LoRA scaled down (wise-ft)": [
        lora(rate, scale=scale) for rate in (4e-3, BEST, 1e-3) for scale in (0.5, 0.25, 0.75)
    ],
    "two more seeds at the best rate": [each(BEST, seed=seed) for seed in (1, 2) for each in (lora, selfaug)],
    "rivals at the best rate": rivals(BEST),
    "LoRA and SelfAug, two epochs": [each(rate, 2) for rate in RATES for each in (lora, selfaug)],
    "LoRA at low rates, four epochs": [lora(rate, 4) for rate in (5e-4, 2e-4)],
    "SelfAug's other settings": [
        *(selfaug(rate, fraction=0.125) for rate in (BEST, *AROUND, 5e-4, 2e-4)),
        *(selfaug(rate, alpha=alpha) for rate in (BEST, *AROUND) for alpha in (0.5, 8.0)),
    ],
    "rivals at a gentler rate": rivals(AROUND[0]),
    "two more seeds around it": [each(r, seed=seed) for seed in (1, 2) for r in AROUND for each in (lora, selfaug)],
    "four documents": [
        Setting("base", documents=4),
        *(each(rate, documents=4) for rate in (BEST, *AROUND) for each in (lora, selfaug)),
    ],
}
"""Runs by stage, in the order in which they are done; a run that stands in two is done once."""


def order() -> list[Setting]:
    """All of them, each once."""
    return list(dict.fromkeys(setting for stage in STAGES.values() for setting in stage))


def finished(results: Store, settings: Sequence[Setting] | None = None) -> dict[Setting, dict[str, Any]]:
    """The results that stand in the folder, of those settings that belong to the study."""
    found = {setting: results.get(setting.name, setting.key) for setting in settings or order()}
    return {setting: body for setting, body in found.items() if body is not None}


def tokens(setting: Setting) -> int:
    """Tokens that its training reads; none where another run trains for it."""
    if setting.method == "base" or setting.scale != 1:
        return 0
    return setting.epochs * TOKENS[setting.documents]


def hours(setting: Setting, done: Mapping[Setting, Mapping[str, Any]]) -> float:
    """The processor's hours that a run will take, by those that are done: of its method, else of all."""
    trained = {each: body for each, body in done.items() if tokens(each)}
    alike = {each: body for each, body in trained.items() if each.method == setting.method} or trained
    speed = TRAIN_SPEED
    if alike:
        speed = sum(map(tokens, alike)) / sum(body["seconds"]["train"] for body in alike.values())
    measured = [b["seconds"]["measure"] for each, b in done.items() if each.documents == setting.documents]
    measuring = sum(measured) / len(measured) if measured else MEASURING[setting.documents]
    return (tokens(setting) / speed + measuring) / 3600


def stages(done: Mapping[Setting, Any]) -> Iterator[tuple[str, list[Setting], list[Setting]]]:
    """Of each stage its name, its runs that no earlier stage has, and those of them that are not done."""
    seen: set[Setting] = set()
    for name, settings in STAGES.items():
        own = [setting for setting in dict.fromkeys(settings) if setting not in seen]
        seen.update(own)
        yield name, own, [setting for setting in own if setting not in done]
