"""The training configuration: TRL's `SFTConfig` and our options, every one documented once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import SFTConfig

from selfaug.common.endpoint import Endpoint
from selfaug.common.errors import ConfigError, nearest
from selfaug.common.redaction import is_secret, redacted
from selfaug.data.lost_answers import check_on_lost_answer
from selfaug.methods import Method, available, get_method
from selfaug.methods.adapters import asks_base
from selfaug.methods.base import Changes
from selfaug.methods.options import read_options, resolve_options
from selfaug.objective import ALIGNMENT_TERMS
from selfaug.training.ranges import TRAINING, check_ranges

__all__ = ["PRESETS", "SelfAugConfig"]

# "default" is what our own measurements chose; the other two are the published settings (docs/design.md, Decisions).
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"align_direction": "base_to_tuned", "align_boundary": False},
    "paper": {"alpha": 0.5, "align_direction": "tuned_to_base", "align_boundary": True},
    "release": {"alpha": 0.5, "align_direction": "base_to_tuned", "align_boundary": True},
}


@dataclass
class SelfAugConfig(SFTConfig):
    """`trl.SFTConfig` with the settings of alignment; the help of each field is its documentation.

    Settings left at ``None`` take the preset's value, then the method's. After construction none of ``alpha``,
    ``align_direction`` and ``align_boundary`` is ``None``.

    Raises:
        ConfigError: If a value is out of its range, or settings contradict each other.
    """

    method: str = field(
        default="selfaug",
        metadata={
            "help": f"Way of fine-tuning: {', '.join(available())}; several joined by '+', as in selfaug+dft. "
            "docs/methods.md says what each does."
        },
    )
    method_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Options of the method: a mapping (in YAML), name=value pairs joined by commas, or a JSON object. "
            "docs/methods.md lists them."
        },
    )
    preset: str = field(
        default="default",
        metadata={
            "help": "Published settings under one name: 'paper' (alpha 0.5, tuned_to_base, boundary in), 'release' "
            "(alpha 0.5, base_to_tuned, boundary in). A setting given by itself wins over the preset.",
            "choices": list(PRESETS),
        },
    )
    alpha: float | None = field(
        default=None,
        metadata={"help": "Weight of the alignment in the loss, 0 or more; 0 trains as `trl sft`. Default 2."},
    )
    align_direction: str | None = field(
        default=None,
        metadata={
            "help": "Divergence between base and tuned next-token distributions: 'base_to_tuned' KL(base || tuned) "
            "(default), 'tuned_to_base' KL(tuned || base), 'jsd' Jensen-Shannon.",
            "choices": list(ALIGNMENT_TERMS),
        },
    )
    align_boundary: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the last prompt position before a response is aligned too. The NLL trains it as well, so "
            "the two pull against each other there. Default false."
        },
    )
    align_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Share of the sequences that is aligned in each step, in (0, 1]: drawn at random, weighted so that "
            "the expected gradient stays the same. 0.125 costs nearly nothing beside plain LoRA."
        },
    )
    align_token_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Share of the aligned tokens of each drawn sequence that is aligned in each step, in (0, 1]: drawn "
            "and weighted as sequences are. It saves projections to the vocabulary; the reference pass still reads a "
            "drawn prompt up to its last drawn token."
        },
    )
    reference: str = field(
        default="base",
        metadata={
            "help": "What the prompt is held to: 'base' (the model with its adapter off), 'initial' (a frozen copy of "
            "the adapter as training began), or a model's path or hub name (full fine-tuning)."
        },
    )
    reference_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps the base's hidden states at aligned positions, so that no step pays for a "
            "reference pass: written before the first step where it is empty (or by `selfaug cache`), read by every "
            "later run on the same data and base. Needs a frozen head; reference stays 'base'."
        },
    )
    cache_dtype: str = field(
        default="auto",
        metadata={
            "help": "Number format of the reference cache: 'auto' that of the model's hidden states (exact), "
            "'bfloat16', 'float32'.",
            "choices": ["auto", "bfloat16", "float32"],
        },
    )
    freeze_head: bool = field(
        default=False,
        metadata={
            "help": "Leave the output projection, and the embedding where both are one, as they are in full "
            "fine-tuning; reference_cache needs it."
        },
    )
    reference_slice: int = field(
        default=4096,
        metadata={
            "help": "Prompts longer than this many tokens go through the reference pass one at a time, in slices of it "
            "with a cache of keys and values, so that its activations are those of a slice; 0 for never. Off where a "
            "cache cannot give the same hidden states, and under FSDP and ZeRO."
        },
    )
    check_reference: bool = field(
        default=True,
        metadata={
            "help": "Check before the first step that the reference is what it claims to be. Switch off only to train "
            "an existing adapter further while holding it to the model without any."
        },
    )
    cut_prompt_left: bool = field(
        default=False,
        metadata={
            "help": "Cut a row without document structure that exceeds max_length at the left of its prompt instead of "
            "leaving it out. Responses are never cut."
        },
    )
    on_lost_answer: str = field(
        default="keep",
        metadata={
            "help": "What becomes of a row whose answer stands only in what does not fit max_length: 'keep' trains the "
            "answer all the same, 'skip' leaves the row out, 'abstain' trains the abstention text in its place.",
            "choices": ["keep", "skip", "abstain"],
        },
    )
    generation_url: str | None = field(
        default=None,
        metadata={
            "help": "OpenAI-compatible endpoint (a vLLM server, say) that serves the base model and writes in its "
            "place, for methods that let the model write before training; by default the loaded model does."
        },
    )
    generation_model: str | None = field(default=None, metadata={"help": "Name of the base model at generation_url."})
    generation_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable with the endpoint's API key."}
    )
    generation_length: int = field(
        default=512, metadata={"help": "Longest text in tokens that the model writes at once before training."}
    )
    generation_batch_size: int = field(
        default=16, metadata={"help": "Texts that the model writes at a time; for an endpoint, requests on their way."}
    )
    objective: str = field(
        default="sweep",
        metadata={
            "help": "Implementation of the loss: 'sweep' (row blocks, no full logits) or 'plain' (its definition over "
            "full logits: slow, for comparison).",
            "choices": ["sweep", "plain"],
        },
    )
    objective_memory_mb: int | None = field(
        default=None,
        metadata={"help": "Memory for the loss's row blocks in MiB. Default 160 on a CPU, 448 on a GPU."},
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            # transformers refuses its own default, bf16, on a machine without accelerator unless told so.
            self.use_cpu = True
        # Before transformers: it replaces an eval_steps of 0 by logging_steps.
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
        self._check_generation(method)
        self._check_start(method)
        self._check_combinations()

    def __getstate__(self) -> dict[str, Any]:
        """Without credentials: transformers pickles its settings into each checkpoint (``training_args.bin``)."""
        kept = {name: None if is_secret(name) else value for name, value in vars(self).items()}
        return {name: redacted(value) if isinstance(value, (str, dict)) else value for name, value in kept.items()}

    @property
    def changes(self) -> Changes:
        """What the method changes of plain fine-tuning under these settings."""
        return get_method(self.method).changes(self)

    @property
    def aligns(self) -> bool:
        """Whether a term acts on prompt positions."""
        return "aligned" in self.changes.places

    @property
    def holds_response(self) -> bool:
        """Whether response positions are compared with the reference."""
        return "compared" in self.changes.places

    @property
    def compares(self) -> bool:
        """Whether any term needs the reference."""
        changes = self.changes
        return changes.activation_term is not None or any(term.term.needs_reference for term in changes.terms)

    @property
    def served_by_cache(self) -> bool:
        """Whether final hidden states at aligned positions are all that is compared with the base."""
        return self.aligns and not self.holds_response and self.changes.activation_term is None

    def _check_ranges(self) -> None:
        assert self.alpha is not None
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
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

    def _check_generation(self, method: Method) -> None:
        for name in ("generation_length", "generation_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} leaves nothing to be written.", "give 1 or more.")
        if (self.generation_url is None) != (self.generation_model is None):
            raise ConfigError(
                "generation_url and generation_model belong together: where the base is served, and its name there.",
                "give both, or neither.",
            )
        if not self.changes.generates:
            if self.generation_url is not None:
                raise ConfigError(
                    f"generation_url has no effect with method={self.method!r}: nothing is written before training.",
                    "leave it out, or choose a method that lets the model write (magpie, sa-sft, sdft).",
                )
            return
        if self.generation_url is not None:
            Endpoint(self.generation_url)
        if self.reference_cache is not None:
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
        for name, what in (("fp16", "16-bit mixed precision"), ("activation_offloading", "moving activations off it")):
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
