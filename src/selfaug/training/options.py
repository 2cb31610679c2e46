"""The training options that TRL does not have, with defaults and help texts.

There is a data class for each group of the help; ``SelfAugConfig`` (``config.py``) inherits all of them. The module
imports nothing heavy, so that the help is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from selfaug.common.options import option

__all__ = [
    "OWN_OPTIONS", "PRESETS", "AlignmentOptions", "GenerationOptions", "LossOptions", "MethodOptions", "ProbeOptions",
    "ReferenceOptions", "RowOptions",
]  # fmt: skip

# "default" comes from our own measurements; the other two are the published settings (docs/design.md, Decisions).
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"align_direction": "base_to_tuned", "align_boundary": False},
    "paper": {"alpha": 0.5, "align_direction": "tuned_to_base", "align_boundary": True},
    "release": {"alpha": 0.5, "align_direction": "base_to_tuned", "align_boundary": True},
}


@dataclass
class MethodOptions:
    """Options of the method of fine-tuning."""

    GROUP: ClassVar[str] = "Method"

    method: str = option(
        "selfaug",
        "Way of fine-tuning: 'selfaug', 'sft' (plain), 'full' (every weight), or another of docs/methods.md; several "
        "joined by '+', as in selfaug+dft.",
        metavar="NAME",
    )
    method_options: dict[str, Any] | str | None = option(
        None,
        "Options of the method: a mapping (in YAML), name=value pairs joined by commas, or a JSON object. "
        "docs/methods.md lists them.",
        metavar="NAME=VALUE,...",
    )
    preset: str = option(
        "default",
        "Published settings under one name: 'paper' (alpha 0.5, tuned_to_base, boundary in), 'release' (alpha 0.5, "
        "base_to_tuned, boundary in). A setting given by itself wins over the preset.",
        choices=list(PRESETS),
    )


@dataclass
class AlignmentOptions:
    """Options of the alignment."""

    GROUP: ClassVar[str] = "Alignment of the prompt with the base"

    alpha: float | None = option(
        None, "Weight of the alignment in the loss, 0 or more; 0 trains as `trl sft`. Default 2."
    )
    align_target: float | None = option(
        None,
        "Shift of the prompts that is wanted, KL(base || tuned) in nats a prompt token, such as 0.05, in place of a "
        "fixed alpha: the weight is found during training.",
        metavar="NATS",
    )
    align_direction: str | None = option(
        None,
        "Divergence between base and tuned next-token distributions: 'base_to_tuned' KL(base || tuned) (default), "
        "'tuned_to_base' KL(tuned || base), 'jsd' Jensen-Shannon.",
        choices=["base_to_tuned", "tuned_to_base", "jsd"],
    )
    align_boundary: bool | None = option(
        None,
        "Whether the last prompt position before a response is aligned too. The NLL trains it as well, so the two pull "
        "against each other there. Default false.",
    )
    align_fraction: float = option(
        1.0,
        "Share of the sequences that is aligned in each step, in (0, 1]: drawn at random, weighted so that the "
        "expected gradient stays the same. 0.125 costs nearly nothing beside plain LoRA.",
    )
    align_token_fraction: float = option(
        1.0,
        "Share of the aligned tokens of each drawn sequence that is aligned in each step, in (0, 1]: drawn and "
        "weighted as sequences are. It saves projections to the vocabulary; the reference pass still reads a drawn "
        "prompt up to its last drawn token.",
    )
    align_data: str | None = option(
        None,
        "Texts that are aligned beside the prompts and not trained: a file or folder of general texts or conversations "
        "in any format, or 'self' for texts that the base writes before the first step (self:200 for two hundred), "
        "from its opened user turn or, without a chat template, from its start token.",
        metavar="FILE|self[:N]",
    )
    align_data_share: float = option(
        0.2, "Share of these texts among the rows of an epoch, and so on average of a step, in (0, 1)."
    )


@dataclass
class ReferenceOptions:
    """Options of the reference and its pass."""

    GROUP: ClassVar[str] = "Reference"

    reference: str = option(
        "base",
        "What the prompt is held to: 'base' (the model with its adapter off), 'initial' (a frozen copy of the adapter "
        "as training began), or a model's path or hub name (full fine-tuning).",
        metavar="NAME",
    )
    reference_cache: str | None = option(
        None,
        "Folder that keeps the base's hidden states at aligned positions, so that no step pays for a reference pass: "
        "written before the first step where it is empty (or by `selfaug cache`), read by every later run on the same "
        "data and base. Needs a frozen head; reference stays 'base'.",
        metavar="FOLDER",
    )
    cache_dtype: str = option(
        "auto",
        "Number format of the reference cache: 'auto' that of the model's hidden states (exact), 'bfloat16', "
        "'float32'.",
        choices=["auto", "bfloat16", "float32"],
    )
    freeze_head: bool = option(
        False,
        "Leave the output projection, and the embedding where both are one, as they are in full fine-tuning; "
        "reference_cache needs it.",
    )
    reference_slice: int = option(
        4096,
        "Prompts longer than this many tokens go through the reference pass one at a time, in slices of it with a "
        "cache of keys and values, so that its activations are those of a slice; 0 for never. Off where a cache cannot "
        "give the same hidden states, and under FSDP and ZeRO.",
    )
    check_reference: bool = option(
        True,
        "Check before the first step that the reference is what it claims to be. Switch off only to train an existing "
        "adapter further while holding it to the model without any.",
    )


@dataclass
class RowOptions:
    """Options for rows that do not fit."""

    GROUP: ClassVar[str] = "Rows that do not fit"

    cut_prompt_left: bool = option(
        False,
        "Cut a row without document structure that exceeds max_length at the left of its prompt instead of leaving it "
        "out. Responses are never cut.",
    )
    on_lost_answer: str = option(
        "keep",
        "What becomes of a row whose answer stands only in what does not fit max_length: 'keep' trains the answer all "
        "the same, 'skip' leaves the row out, 'abstain' trains the abstention text in its place.",
        choices=["keep", "skip", "abstain"],
    )


@dataclass
class GenerationOptions:
    """Options of texts that the base writes before training."""

    GROUP: ClassVar[str] = "What the base writes before training (align_data self, probe, and methods that let it)"

    generation_url: str | None = option(
        None,
        "OpenAI-compatible endpoint (a vLLM server, say) that serves the base model and writes in its place, for "
        "methods that let the model write before training; by default the loaded model does.",
        metavar="URL",
    )
    generation_model: str | None = option(None, "Name of the base model at generation_url.", metavar="NAME")
    generation_key_env: str = option(
        "OPENAI_API_KEY", "Environment variable with the endpoint's API key.", metavar="NAME"
    )
    generation_length: int = option(512, "Longest text in tokens that the model writes at once before training.")
    generation_batch_size: int = option(
        16, "Texts that the model writes at a time; for an endpoint, requests on their way."
    )


@dataclass
class ProbeOptions:
    """Options of the probe of general ability while training."""

    GROUP: ClassVar[str] = "Probe of general ability while training"

    probe: str | None = option(
        None,
        "Measure KL(base || tuned) on the base's own answers to prompts while training: 'general' for 64 prompts that "
        "come along, or a file of prompts, conversations or records.",
        metavar="general|FILE",
    )
    probe_steps: int | None = option(
        None, "Optimiser steps between probes; without it, whenever the run evaluates or saves.", metavar="N"
    )
    probe_limit: float | None = option(
        None, "Largest KL of the probe in nats a token; beyond it the training ends.", metavar="NATS"
    )
    probe_action: str = option(
        "stop",
        "What becomes of a run that broke probe_limit: 'stop' keeps the weights of that step, 'restore' goes back to "
        "the last probe within the limit (a checkpoint is made at each).",
        choices=["stop", "restore"],
    )


@dataclass
class LossOptions:
    """Options of the computation of the loss."""

    GROUP: ClassVar[str] = "Loss"

    objective: str = option(
        "sweep",
        "Implementation of the loss: 'sweep' (row blocks, no full logits) or 'plain' (its definition over full logits: "
        "slow, for comparison).",
        choices=["sweep", "plain"],
    )
    objective_memory_mb: int | None = option(
        None, "Memory for the loss's row blocks in MiB. Default 160 on a CPU, 448 on a GPU."
    )


OWN_OPTIONS = (
    MethodOptions, AlignmentOptions, ReferenceOptions, RowOptions, ProbeOptions, LossOptions, GenerationOptions,
)  # fmt: skip
"""Classes of our options, in the order of the help."""
