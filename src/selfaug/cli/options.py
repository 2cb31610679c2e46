"""The options of `selfaug train` that `trl sft` does not have, and the defaults that differ from its own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from selfaug.common.errors import ConfigError

__all__ = ["AUTO", "DIFFERENT_DEFAULTS", "LONGEST", "DifferentDefault", "RunArguments"]

AUTO = "auto"
LONGEST = 8192
"""Default limit of tokens per sequence where the model's context is longer."""


class DifferentDefault(NamedTuple):
    """A flag of ``trl sft`` whose default is another here."""

    trl: Any
    ours: Any
    shown: str
    why: str


DIFFERENT_DEFAULTS = {
    "use_peft": DifferentDefault(
        False, True, "true", "alignment needs the base model: with LoRA it is there at no cost, by switching it off"
    ),
    "lora_target_modules": DifferentDefault(
        None, ["all-linear"], "all-linear", "PEFT's own default lacks several architectures and the feed-forward layers"
    ),
    "max_length": DifferentDefault(
        1024, AUTO, f"the smaller of the model's context and {LONGEST:,}", "retrieved documents are long"
    ),
    "bf16": DifferentDefault(
        None, None, "true where the device computes in bfloat16", "trl's `true` stops with an error on other devices"
    ),
}
"""Where `selfaug train` and `trl sft` differ when a flag is not given; the documentation's table is made from this."""


@dataclass
class RunArguments:
    """What `selfaug train` takes besides `trl sft`'s flags and the method's: data, and the run folder."""

    eval_dataset: str | None = field(
        default=None, metadata={"help": "File or folder to evaluate on during training; any format of dataset_name."}
    )
    held_out: float | None = field(
        default=None,
        metadata={
            "help": "Part of the records, between 0 and 1, kept out of training and evaluated on. Records that share "
            "a document stay together."
        },
    )
    format: str = field(default="auto", metadata={"help": "Format of the data; 'auto' looks at the first rows."})
    map: list[str] | None = field(
        default=None,
        metadata={
            "help": "Where the fields of a record stand in the rows: FIELD=PATH ..., such as question=query "
            "documents=ctxs[].text answer=response (in YAML a mapping).",
            "metavar": "FIELD=PATH",
        },
    )
    on_bad_row: str = field(
        default="error",
        metadata={
            "help": "What a row that cannot be used does: 'error' stops, 'skip' leaves it out, counted and listed.",
            "choices": ["error", "skip"],
        },
    )
    prompt: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Settings of the prompt as a mapping (in YAML) or a JSON object: system, order, question_position, "
            "abstention and the other arguments of selfaug.Renderer."
        },
    )
    renderer: str | None = field(
        default=None,
        metadata={"help": "File or folder with the renderer settings (selfaug_renderer.json) of an earlier run."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Remove the run that output_dir holds; other files in it stay."}
    )
    full_weight_hash: bool = field(
        default=False, metadata={"help": "Hash every byte of the base weights for the manifest, not a sample."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.prompt, str):
            try:
                self.prompt = json.loads(self.prompt)
            except ValueError as error:
                raise ConfigError(
                    f"prompt is no JSON object: {error}", """write for example --prompt '{"order": "best_first"}'."""
                ) from None
        if self.prompt is not None and not isinstance(self.prompt, dict):
            raise ConfigError(
                f"prompt is {self.prompt!r}, not an object of settings",
                """write for example --prompt '{"order": "best_first"}'.""",
            )
        if self.prompt is not None and self.renderer is not None:
            raise ConfigError(
                "prompt and renderer are both set: the renderer's file holds all settings of the prompt",
                "pass one of them.",
            )
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ConfigError(
                f"held_out is {self.held_out}: the part kept for evaluation lies between 0 and 1, both excluded",
                "pass for example --held_out 0.1.",
            )
        if self.held_out is not None and self.eval_dataset is not None:
            raise ConfigError(
                "held_out and eval_dataset are both set: there would be two evaluation sets", "pass one of them."
            )
