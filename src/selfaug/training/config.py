"""The training configuration: TRL's `SFTConfig` with our options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import is_liger_kernel_available
from trl import SFTConfig

from selfaug.before.align_rows import AlignData
from selfaug.common.endpoint import Endpoint
from selfaug.common.errors import ConfigError, nearest
from selfaug.common.redaction import is_secret, redacted
from selfaug.data.files import data_files
from selfaug.data.lost_answers import check_on_lost_answer
from selfaug.methods import Method, get_method
from selfaug.methods.adapters import asks_base
from selfaug.methods.base import Changes
from selfaug.methods.options import read_options, resolve_options
from selfaug.objective import ALIGNMENT_TERMS
from selfaug.step.shift_target import check_target, first_weight
from selfaug.training.options import (
    PRESETS,
    AlignmentOptions,
    GenerationOptions,
    LossOptions,
    MethodOptions,
    ProbeOptions,
    ReferenceOptions,
    RowOptions,
)
from selfaug.training.probe import check_probe
from selfaug.training.ranges import TRAINING, check_ranges

__all__ = ["PRESETS", "SelfAugConfig"]


@dataclass
class SelfAugConfig(
    MethodOptions,
    AlignmentOptions,
    ReferenceOptions,
    RowOptions,
    ProbeOptions,
    LossOptions,
    GenerationOptions,
    SFTConfig,
):
    """`trl.SFTConfig` with the settings of methods and alignment, which ``options.py`` documents.

    Settings left at ``None`` take the preset's value, then the method's. After construction neither ``align_direction``
    nor ``align_boundary`` is ``None``, and either ``alpha`` or ``align_target`` is.

    Raises:
        ConfigError: If a value is out of its range, or settings contradict each other.
    """

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            # Without this setting transformers refuses its own default, bf16, on a machine without accelerator.
            self.use_cpu = True
        # This check comes first, since transformers replaces an eval_steps of 0 by logging_steps.
        check_ranges(self, TRAINING)
        super().__post_init__()
        method = get_method(self.method)
        if self.preset not in PRESETS:
            raise ConfigError(
                f"preset={self.preset!r} is not known.{nearest(self.preset, PRESETS)}",
                f"choose one of: {', '.join(PRESETS)}.",
            )
        # A method that aligns nothing has its own alpha, whatever the preset.
        chosen = {**method.defaults, **({} if method.defaults.get("alpha") == 0 else PRESETS[self.preset])}
        if self.align_target is not None:
            self._check_target(method)
            chosen = {**chosen, "alpha": None}
        for name, value in {**PRESETS["default"], **chosen}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        classes = [part.Options for part in method.parts]
        self.method_options = resolve_options(self.method, classes, read_options(self.method_options)) or None
        self._check_ranges()
        if self.alpha and not method.defaults["alpha"]:
            raise ConfigError(
                f"alpha={self.alpha} has no effect with method={self.method!r}, which aligns no prompt.",
                f"use --method selfaug (or a combination, --method selfaug+{self.method}), or leave alpha out.",
            )
        for part in method.parts:
            part.check(self)
        self._check_align_data()
        check_probe(self)
        self._check_generation(method)
        self._check_start(method)
        self._check_combinations()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out credentials, since transformers pickles the settings into checkpoints (``training_args.bin``)."""
        kept = {name: None if is_secret(name) else value for name, value in vars(self).items()}
        return {name: redacted(value) if isinstance(value, (str, dict)) else value for name, value in kept.items()}

    @property
    def changes(self) -> Changes:
        """The changes that the method makes to plain fine-tuning under these settings."""
        return get_method(self.method).changes(self)

    @property
    def alignment_weight(self) -> float:
        """The weight of the alignment in the first step."""
        if self.align_target is not None:
            return first_weight(self.align_target)
        assert self.alpha is not None
        return self.alpha

    @property
    def aligns(self) -> bool:
        """Whether a term acts on prompt positions."""
        return "aligned" in self.changes.places

    @property
    def compares_response(self) -> bool:
        """Whether response positions are compared with the reference."""
        return "compared" in self.changes.places

    @property
    def compares(self) -> bool:
        """Whether any term needs the reference."""
        changes = self.changes
        return changes.activation_term is not None or any(term.term.needs_reference for term in changes.terms)

    @property
    def aligns_written(self) -> bool:
        """Whether the base writes texts before the first step that are aligned."""
        return self.align_data is not None and AlignData.parse(self.align_data).path is None

    @property
    def served_by_cache(self) -> bool:
        """Whether only final hidden states at aligned positions are compared with the reference."""
        return self.aligns and not self.compares_response and self.changes.activation_term is None

    def _check_ranges(self) -> None:
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ConfigError(
                f"alpha={self.alpha} is not a weight: the alignment would be unbounded or push the model away from its "
                "base.",
                "give a finite number of 0 or more; 2 is the default, 0 trains as `trl sft`.",
            )
        for name, what in (("align_fraction", "sequence"), ("align_token_fraction", "aligned token")):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is not a share in (0, 1]: each {what} is drawn with this chance, "
                    "and its weight is divided by it.",
                    f"give e.g. 0.125 for an eighth of the {what}s, 1 for all; to align nothing set alpha to 0.",
                )
        if self.align_direction not in ALIGNMENT_TERMS:
            raise ConfigError(
                f"align_direction={self.align_direction!r} is not known."
                f"{nearest(str(self.align_direction), ALIGNMENT_TERMS)}",
                f"choose one of: {', '.join(ALIGNMENT_TERMS)}.",
            )
        if self.cache_dtype not in ("auto", "bfloat16", "float32"):
            raise ConfigError(
                f"cache_dtype={self.cache_dtype!r} is not known.", "choose 'auto', 'bfloat16' or 'float32'."
            )
        if self.objective not in ("sweep", "plain"):
            raise ConfigError(f"objective={self.objective!r} is not known.", "choose 'sweep' or 'plain'.")
        check_on_lost_answer(self.on_lost_answer)
        if self.reference_slice < 0:
            raise ConfigError(
                f"reference_slice={self.reference_slice} is not a number of tokens.",
                "give the tokens of a slice, 4096 by default, or 0 to let every prompt through the reference at once.",
            )
        if self.objective_memory_mb is not None and self.objective_memory_mb < 1:
            raise ConfigError(
                f"objective_memory_mb={self.objective_memory_mb} leaves no memory for a row of logits.",
                "give a number of MiB above 0, or leave it out.",
            )

    def _check_target(self, method: Method) -> None:
        assert self.align_target is not None
        direction = self.align_direction or PRESETS[self.preset]["align_direction"]
        check_target(self.align_target, self.alpha, direction)
        if not method.defaults["alpha"]:
            raise ConfigError(
                f"align_target={self.align_target} has no effect with method={self.method!r}, which aligns no prompt.",
                f"use --method selfaug (or a combination, --method selfaug+{self.method}), or leave align_target out.",
            )
        if self.load_best_model_at_end and self.metric_for_best_model in (None, "loss", "eval_loss"):
            raise ConfigError(
                f"align_target={self.align_target} changes the weight of the alignment from step to step, so that "
                "eval_loss of one moment cannot be compared with that of another, and load_best_model_at_end chooses "
                "by it.",
                "choose by --metric_for_best_model eval_nll, or leave load_best_model_at_end out.",
            )

    def _check_align_data(self) -> None:
        if not 0 < self.align_data_share < 1:
            raise ConfigError(
                f"align_data_share={self.align_data_share} is not a share in (0, 1): it is that of the aligned texts "
                "among the rows of an epoch, and the others are trained.",
                "give e.g. 0.2 for a fifth; to align prompts alone leave align_data out.",
            )
        if self.align_data is None:
            return
        path = AlignData.parse(self.align_data).path
        if not (self.aligns and self.compares):
            raise ConfigError(
                f"align_data={self.align_data!r} has no effect with alpha={self.alpha} and method={self.method!r}: "
                "nothing is aligned.",
                "give an alpha above 0 (--method selfaug, or a combination with it), or leave align_data out.",
            )
        learnt = [t.term.name for t in self.changes.terms if t.where == "aligned" and not t.term.needs_reference]
        if learnt:
            raise ConfigError(
                f"method={self.method!r} has a loss on prompts that holds to no base ({', '.join(learnt)}), and would "
                "learn the texts of align_data by it.",
                "leave align_data out, or that method.",
            )
        if (self.dataset_kwargs or {}).get("skip_prepare_dataset"):
            raise ConfigError(
                "align_data adds rows to the tokenised ones, and skip_prepare_dataset leaves them to somebody else.",
                "leave --align_data or skip_prepare_dataset out.",
            )
        if path is not None:
            data_files(path)
        elif self.reference == "initial":
            raise ConfigError(
                f"align_data={self.align_data!r} lets the model write with its adapter off, and with "
                "reference='initial' it is the adapter as training began that texts are held to.",
                "give a file of texts: --align_data FILE.",
            )

    def _check_generation(self, method: Method) -> None:
        for name in ("generation_length", "generation_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} leaves nothing to be written.", "give 1 or more.")
        if (self.generation_url is None) != (self.generation_model is None):
            raise ConfigError(
                "generation_url and generation_model belong together: where the base is served, and its name there.",
                "give both, or neither.",
            )
        if not (self.changes.generates or self.aligns_written or self.probe is not None):
            if self.generation_url is not None:
                raise ConfigError(
                    f"generation_url has no effect with method={self.method!r}: nothing is written before training.",
                    "leave it out, or choose a method that lets the model write (magpie, sa-sft, sdft).",
                )
            return
        if self.generation_url is not None:
            Endpoint(self.generation_url)
        if self.changes.generates and self.reference_cache is not None:
            raise ConfigError(
                f"method={self.method!r} changes the training rows before the first step, and a reference_cache is "
                "written for the rows as they were.",
                "leave --reference_cache out.",
            )

    def _check_start(self, method: Method) -> None:
        start = self.changes.start
        if start is None:
            return
        if self.compares and self.reference == "base":
            raise ConfigError(
                f"method={self.method!r} takes the adapter's start ({start.kind}) out of the base's weights, so with "
                "the adapter off the model is not the base.",
                "use --reference initial: the adapter as training began, which with them is the base.",
            )
        if asks_base(method, self):
            raise ConfigError(
                f"method={self.method!r} asks the base before training, and {start.kind} takes the adapter's start out "
                "of its weights.",
                f"leave {start.kind!r} out, or the part that asks the base.",
            )
        if self.changes.parameter_terms:
            raise ConfigError(
                f"method={self.method!r} penalises the update of the base's weights, and {start.kind} takes the "
                "adapter's start out of them, so that the adapter is more than the update.",
                f"leave {start.kind!r} out, or the penalty.",
            )

    def _check_combinations(self) -> None:
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        needing = {"fp16": "16-bit mixed precision", "activation_offloading": "moving activations off it"}
        if is_liger_kernel_available():  # without the package, that is what has to be said
            needing["use_liger_kernel"] = "its kernels are written in Triton"
        for name, what in needing.items():
            if on_cpu and getattr(self, name):
                raise ConfigError(
                    f"{name}=True needs an accelerator ({what}), and this trains on the CPU, where it would have no "
                    "effect or stop the first step.",
                    f"leave {name} out{', or use bf16' if name == 'fp16' else ''}.",
                )
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise ConfigError(
                "dataloader_persistent_workers keeps worker processes alive, and dataloader_num_workers=0 starts none.",
                "give --dataloader_num_workers 1 or more, or leave dataloader_persistent_workers out.",
            )
        for name in ("dataset_kwargs", "lr_scheduler_kwargs", "model_init_kwargs", "gradient_checkpointing_kwargs"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, dict):
                raise ConfigError(
                    f"{name}={value!r} is no mapping of settings.",
                    f"""write a JSON object: --{name} '{{"name": 1}}'.""",
                )
        if self.label_smoothing_factor > 0:
            raise ConfigError(
                f"label_smoothing_factor={self.label_smoothing_factor} is not supported: it needs full logits, which "
                "never exist here.",
                "leave it out.",
            )
        if self.loss_type != "nll":
            raise ConfigError(
                f"loss_type={self.loss_type!r} is not supported: the response's loss is the method's own.",
                "leave it out, and choose a way of fine-tuning with --method.",
            )
        if not self.compares:
            return
        if self.reference_cache is not None and self.reference != "base":
            raise ConfigError(
                f"reference={self.reference!r} cannot come out of a reference_cache: it holds the model that training "
                "starts from, without an adapter.",
                "leave --reference out, or --reference_cache.",
            )
        if self.reference_cache is not None and not self.served_by_cache:
            raise ConfigError(
                f"method={self.method!r} compares more with the base than a reference_cache holds: final hidden states "
                "at aligned positions.",
                "leave --reference_cache out, or choose a method that compares the prompt alone.",
            )
        if self.packing and self.packing_strategy == "wrapped":
            raise ConfigError(
                "packing_strategy='wrapped' keeps no document boundaries, so a document's last token would be compared "
                "with the next document's first.",
                "use packing_strategy='bfd'.",
            )
        if not self.average_tokens_across_devices:
            raise ConfigError(
                "average_tokens_across_devices=False weights ranks alike whatever their number of tokens; the loss "
                "here is defined over all tokens of the step.",
                "leave it at its default, True.",
            )
