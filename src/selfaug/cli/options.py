"""Options that verbs share, options of `selfaug train` beyond `trl sft`, and defaults that differ from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from selfaug.cli.config import Command
from selfaug.common.errors import ConfigError
from selfaug.common.options import option
from selfaug.training.options import OWN_OPTIONS

__all__ = [
    "AUTO", "DIFFERENT_DEFAULTS", "DTYPES", "LONGEST", "SHORT_HELP", "TRAIN", "Devices", "DifferentDefault",
    "OftenUsed", "OnBadRow", "RunArguments", "WhatIsTrained", "bad_rows", "data_format", "field_map", "prompt_option",
    "prompt_settings", "track",
]  # fmt: skip

AUTO = "auto"
LONGEST = 8192
"""Default of ``max_length`` in tokens where the model's context is longer."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
OnBadRow = Literal["error", "skip"]


def data_format() -> Any:
    """Return the option ``format`` of a verb that reads rows."""
    return option("auto", "Format of the data (docs/data.md); 'auto' detects it from the first rows.",
                  metavar="NAME")  # fmt: skip


def field_map() -> Any:
    """Return the option ``map`` of a verb that reads rows."""
    return option(
        None,
        "Paths of a record's fields in the rows, such as question=query documents=ctxs[].text answer=response "
        "(in YAML a mapping).",
        metavar="FIELD=PATH",
    )


def bad_rows() -> Any:
    """Return the option ``on_bad_row`` of a verb that reads rows."""
    return option(
        "error",
        "Treatment of a row that cannot be used: 'error' stops, 'skip' leaves it out, counted and listed.",
    )


def track() -> Any:
    """Return the option ``track`` of a verb that measures a run."""
    return option(True, "Send the numbers, and nothing else, to the trackers that the training reported to.")


def prompt_option(group: str | None = None) -> Any:
    """Return the option ``prompt`` of a verb that lays prompts out, which begins a group of the help."""
    return option(
        None,
        "Settings of the prompt as a mapping (in YAML) or a JSON object: system, order, question_position, abstention "
        "and the other arguments of selfaug.Renderer.",
        group=group,
        metavar="JSON",
    )


def prompt_settings(prompt: dict[str, Any] | str | None, renderer: str | None) -> dict[str, Any] | None:
    """Return the settings that ``prompt`` holds.

    Raises:
        ConfigError: If it is no JSON object, or ``renderer`` is set too.
    """
    if isinstance(prompt, str):
        try:
            prompt = json.loads(prompt)
        except ValueError as error:
            raise ConfigError(
                f"prompt is no JSON object: {error}", """write for example --prompt '{"order": "best_first"}'."""
            ) from None
    if prompt is not None and not isinstance(prompt, dict):
        raise ConfigError(
            f"prompt is {prompt!r}, not an object of settings",
            """write for example --prompt '{"order": "best_first"}'.""",
        )
    if prompt is not None and renderer is not None:
        raise ConfigError(
            "prompt and renderer are both set: the renderer's file holds all settings of the prompt",
            "pass one of them.",
        )
    return prompt


class DifferentDefault(NamedTuple):
    """A flag of ``trl sft`` whose default differs here; :class:`OftenUsed` has ours."""

    trl: Any
    shown: str
    why: str


DIFFERENT_DEFAULTS = {
    "use_peft": DifferentDefault(
        False, "true", "alignment needs the base model: with LoRA it is there at no cost, by switching it off"
    ),
    "lora_target_modules": DifferentDefault(
        None, "all-linear", "PEFT's own default lacks several architectures and the feed-forward layers"
    ),
    "max_length": DifferentDefault(
        1024, f"the smaller of the model's context and {LONGEST:,}", "retrieved documents are long"
    ),
    "bf16": DifferentDefault(
        None, "true where the device computes in bfloat16", "trl's `true` stops with an error on other devices"
    ),
}
"""Defaults that differ between `selfaug train` and `trl sft`; the documentation's table is made from this."""


def _max_length(text: str) -> int | str | None:
    if text.lower() in ("none", "null"):
        return None
    return AUTO if text == AUTO else int(text)


@dataclass
class WhatIsTrained:
    """Flags of `trl sft` without which nothing is trained, as the help shows them."""

    GROUP: ClassVar[str] = "Model, data and output"

    model_name_or_path: str | None = option(
        None, "Model: a folder, a name on the hub, or 'lab' for the small one that comes along.", metavar="MODEL"
    )
    dataset_name: str | None = option(
        None, "Training data: a file, a folder, or a name on the hub (docs/data.md).", metavar="DATA"
    )
    output_dir: str | None = option(
        None, "Folder of the run: settings, log, checkpoints, adapter.", metavar="FOLDER", shown="trainer_output"
    )


@dataclass
class OftenUsed:
    """Flags of `trl sft` that most trainings set, as the help shows them, with our defaults."""

    GROUP: ClassVar[str] = "Training (flags of `trl sft` that are often used)"

    learning_rate: float = option(2e-5, "Highest learning rate.")
    num_train_epochs: float = option(3.0, "Passes over the data.")
    max_steps: int = option(-1, "Number of optimiser steps, in place of num_train_epochs where above 0.")
    per_device_train_batch_size: int = option(8, "Rows of a micro-batch on each device.")
    gradient_accumulation_steps: int = option(1, "Number of micro-batches of an optimiser step.")
    max_length: int | None = option(
        AUTO,
        "Longest row in tokens; 'none' for any length.",
        shown=DIFFERENT_DEFAULTS["max_length"].shown,
        type=_max_length,
        metavar="N",
    )
    packing: bool = option(False, "Pack several rows into one sequence, in which they do not attend to each other.")
    use_peft: bool = option(True, "Train a LoRA adapter; 'false' trains every weight, with --reference a path.")
    lora_r: int = option(16, "Rank of the adapter.")
    lora_alpha: int = option(32, "Scale of the adapter; it is divided by the rank.")
    lora_target_modules: list[str] | None = option(["all-linear"], "Modules that get an adapter.", metavar="NAME")
    bf16: bool | None = option(None, "Compute in bfloat16.", shown=DIFFERENT_DEFAULTS["bf16"].shown)
    gradient_checkpointing: bool = option(True, "Save memory for about a fifth more time.")
    seed: int = option(42, "Seed of the adapter's weights, of the order of rows and of all draws.")
    logging_steps: float = option(10, "Optimiser steps between log lines.")
    save_steps: float = option(500, "Optimiser steps between checkpoints; the last one is always saved.")
    eval_strategy: str = option(
        "no",
        "Time of evaluation: 'no', 'steps' or 'epoch'; with held_out or eval_dataset after each epoch.",
        metavar="WHEN",
    )
    resume_from_checkpoint: str | None = option(
        None, "Resume from a checkpoint; without a value from the last whole one.", const="true", metavar="FOLDER"
    )
    report_to: str | None = option("none", "Tracker of the log, such as wandb or tensorboard.", metavar="NAME")


@dataclass
class Devices:
    """Flags of `accelerate launch` that are often used, as the help shows them."""

    GROUP: ClassVar[str] = "Several devices (any flag of `accelerate launch` is taken)"

    num_processes: int | None = option(None, "Number of processes, one a device.", shown="one for each visible GPU")
    accelerate_config: str | None = option(
        None, "Configuration of accelerate: a file, or a name such as fsdp2 or zero3.", metavar="NAME"
    )


@dataclass
class RunArguments:
    """Options of `selfaug train` besides those of `trl sft` and the method: data, prompt and the run folder."""

    eval_dataset: str | None = option(
        None,
        "File or folder to evaluate on during training; any format of dataset_name.",
        group=WhatIsTrained.GROUP,
        metavar="DATA",
    )
    held_out: float | None = option(
        None,
        "Share of the records, between 0 and 1, kept out of training and evaluated on. Records that share a document "
        "stay together.",
        metavar="FRACTION",
    )
    format: str = data_format()
    map: list[str] | None = field_map()
    on_bad_row: OnBadRow = bad_rows()
    prompt: dict[str, Any] | str | None = prompt_option("Prompt")
    renderer: str | None = option(
        None, "File or folder with the renderer settings (selfaug_renderer.json) of an earlier run.", metavar="FOLDER"
    )
    overwrite_output_dir: bool = option(
        False, "Remove the run that output_dir holds; other files in it stay.", group="Run folder"
    )
    dry_run: bool = option(
        False,
        "Print what the training will take and end: rows, tokens, steps, memory by part, time from a few steps, and "
        "what would make it fit. Writes nothing to output_dir.",
    )
    full_weight_hash: bool = option(False, "Hash every byte of the base weights for the manifest, not only a sample.")

    def __post_init__(self) -> None:
        self.prompt = prompt_settings(self.prompt, self.renderer)
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ConfigError(
                f"held_out is {self.held_out}: the part kept for evaluation lies between 0 and 1, both excluded",
                "pass for example --held_out 0.1.",
            )
        if self.held_out is not None and self.eval_dataset is not None:
            raise ConfigError(
                "held_out and eval_dataset are both set: there would be two evaluation sets", "pass one of them."
            )


SHORT_HELP = (WhatIsTrained, *OWN_OPTIONS, RunArguments, OftenUsed, Devices)
"""Data classes of the options that `selfaug train --help` shows."""

TRAIN: Command[Any] = Command(
    "train",
    SHORT_HELP,
    "Fine-tune a model on RAG data, and hold what it says on the prompt to what its base says. Takes every flag of "
    "`trl sft` and of `accelerate launch`; --help-all shows all of TRL's. The folder of the finished adapter goes to "
    "stdout, everything else to stderr.",
    (
        "selfaug train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name train.jsonl --output_dir runs/mine",
        "selfaug train --config settings.yaml --dataset_name train.jsonl --held_out 0.1 --alpha 1 --num_processes 2",
        "selfaug train --config settings.yaml --dataset_name train.jsonl --align_data self:200",
    ),
    reads_itself=True,
)
