"""`attach`: SelfAug on an existing `transformers.Trainer`.

It replaces the two methods in which a trainer sees a step, `get_batch_samples` and `compute_loss`, and uses the same
:class:`selfaug.step.driver.StepDriver` as our own trainer. It needs torch, transformers, peft and safetensors only.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from selfaug.common.errors import ConfigError, nearest
from selfaug.common.files import replacing
from selfaug.common.terminal import say
from selfaug.model.base import Base
from selfaug.model.checks import check_documents_apart, check_head, probe_tokens
from selfaug.model.parts import attends_throughout, depends_on_what_follows, takes_documents_in_a_row
from selfaug.model.sharding import reshard
from selfaug.objective import ALIGNMENT_TERMS, NLL
from selfaug.planning.plan import IGNORED, document_ids
from selfaug.planning.reference_batch import ReferenceLayout
from selfaug.reference import Reference, make_reference
from selfaug.reference.checks import check_full_tuning, check_peft, check_quantised, check_reference
from selfaug.reference.passes import can_slice, slices_agree
from selfaug.step.driver import KEY, Draw, StepDriver
from selfaug.step.forward import StepObjective, TermOn, inside, install
from selfaug.step.meter import Meter
from selfaug.step.shift_target import ShiftTarget, check_target, first_weight

__all__ = ["REFERENCE_FILE", "attach", "check_settings"]

logger = logging.getLogger(__name__)

AnyTrainer = TypeVar("AnyTrainer")

REFERENCE_FILE = "selfaug_reference.safetensors"
"""File of a checkpoint that holds the copy of ``reference="initial"``; our own trainer uses the same name."""
TARGET_FILE = "selfaug_method.safetensors"
"""File of a checkpoint that holds what ``align_target`` must remember; our own trainer uses the same name."""
ALPHA = 2.0
"""Default weight of the alignment."""

_TEXT_KEYS = frozenset(
    {
        "input_ids", "labels", "attention_mask", "position_ids",
        "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx",
        "packed_seq_lengths",
    }
)  # fmt: skip
"""What a batch of text may hold: the reference pass gets all of it, cut to the drawn prompts."""


def attach(
    trainer: AnyTrainer,
    *,
    alpha: float | None = None,
    align_target: float | None = None,
    align_fraction: float = 1.0,
    align_token_fraction: float = 1.0,
    align_boundary: bool = False,
    align_direction: str = "base_to_tuned",
    reference: str = "base",
    reference_slice: int = 4096,
    check: bool = True,
) -> AnyTrainer:
    """``loss = Σ nll / n_response + α · Σ_drawn kl / (f · n_aligned)`` over each optimiser step of this trainer.

    ``f = align_fraction · align_token_fraction``. Both divisors count tokens of the whole step, over micro-batches and
    ranks. Prompt tokens are those whose label is -100.

    Args:
        trainer: `transformers.Trainer` (or a subclass, such as `trl.SFTTrainer`) that has not begun to train. Its
            collator must return ``input_ids``, ``labels``, and ``attention_mask`` or ``position_ids``. Rows may hold
            several documents if ``position_ids`` begin at 0 in each, and if the model keeps them apart.
        alpha: Weight of the alignment; finite, 0 or more. Default 2.
        align_target: Shift that is wanted, KL(base ‖ tuned) in nats a prompt token, above 0, in place of ``alpha``,
            which is then found during training and logged beside the ``shift``.
        align_fraction: Share in (0, 1] of the sequences that are aligned in each step.
        align_token_fraction: Share in (0, 1] of the prompt tokens of these sequences that are aligned.
        align_boundary: Whether the last prompt position before a response is aligned too.
        align_direction: Direction of the KL: ``base_to_tuned``, ``tuned_to_base`` or ``jsd``.
        reference: Reference model: ``base`` (the model with its adapter off), ``initial`` (with the adapter as it is
            now), or the path or name of a model (for full fine-tuning).
        reference_slice: Number of tokens of a slice; longer prompts go through the reference pass in slices; 0 for no
            slices.
        check: Whether head and reference are tested on a few tokens before the first step, and packed rows at theirs.

    Returns:
        The same trainer, which now also logs ``nll`` and ``alignment`` (nats a token).

    Raises:
        ConfigError: If a setting is out of range, or does not work with the trainer, its model or its adapter.
    """
    check_settings(alpha, align_target, align_fraction, align_token_fraction, align_direction)
    weight = ALPHA if alpha is None else alpha
    if align_target is not None:
        weight = first_weight(align_target)
    _Attached(
        trainer,
        Draw(
            trainer.args.seed,  # type: ignore[attr-defined]
            align_fraction,
            align_token_fraction,
            align_boundary,
            align=weight > 0,
            pad_token_id=_tokens_of(trainer)["pad"],
        ),
        weight,
        None if align_target is None else ShiftTarget(align_target, weight, align_fraction * align_token_fraction),
        align_direction,
        reference,
        reference_slice,
        check,
    )
    return trainer


def check_settings(
    alpha: float | None,
    align_target: float | None,
    align_fraction: float,
    align_token_fraction: float,
    align_direction: str,
) -> None:
    """Refuse settings of :func:`attach` that are out of range.

    Raises:
        ConfigError: With the range.
    """
    if align_target is not None:
        check_target(align_target, alpha, align_direction)
    if alpha is not None and not 0 <= alpha < float("inf"):
        raise ConfigError(f"alpha={alpha} is not a weight", "give a finite number of 0 or more; 2 is the default.")
    for name, share in (("align_fraction", align_fraction), ("align_token_fraction", align_token_fraction)):
        if not 0 < share <= 1:
            raise ConfigError(f"{name}={share} is not a share in (0, 1]", "give e.g. 0.125; 1 aligns all.")
    if align_direction not in ALIGNMENT_TERMS:
        raise ConfigError(
            f"align_direction={align_direction!r} is not known.{nearest(align_direction, ALIGNMENT_TERMS)}",
            f"choose one of: {', '.join(ALIGNMENT_TERMS)}.",
        )


class _Attached:
    """The connection of a trainer to the step driver."""

    def __init__(
        self,
        trainer: Any,
        draw: Draw,
        alpha: float,
        target: ShiftTarget | None,
        direction: str,
        reference: str,
        slice_tokens: int,
        check: bool,
    ) -> None:
        self.trainer, self.target, self._check, self._alpha = trainer, target, check, alpha
        self._tokens = _tokens_of(trainer)
        self._unseen_packing = check and alpha > 0
        self._unseen_step = alpha > 0
        sharded = bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
        _refuse(trainer)
        has_adapter = hasattr(trainer.model, "get_base_model")
        self.model = trainer.model.get_base_model() if has_adapter else trainer.model
        self.reference = self._make_reference(reference, has_adapter=has_adapter) if alpha else None
        terms = [TermOn(NLL(), "response", 1.0)]
        if alpha:
            terms.append(TermOn(ALIGNMENT_TERMS[direction], "aligned", alpha))
        slices = None if sharded else self._slice_tokens(slice_tokens)
        self._sharded = sharded
        self._planned_shapes: dict[int, torch.Size] = {}
        objective = StepObjective(terms, self.reference, slice_tokens=slices, inspect=self._inspect_packing)
        layout = ReferenceLayout(
            whole=depends_on_what_follows(self.model.config),
            concatenate=takes_documents_in_a_row(self.model),
            slice=slices,
        )
        self.driver = StepDriver(objective, draw, layout, trainer.accelerator, sharded=sharded)
        self.meters = {True: Meter(), False: Meter()}
        install(self.model, objective)
        self.base = Base.of(self.model)
        if trainer.args.should_save:
            self.base.write_with(trainer.model)
        self._replace_methods()

    def _make_reference(self, kind: str, *, has_adapter: bool) -> Reference:
        if has_adapter:
            check_peft(self.trainer.model.active_peft_config, kind)
        else:
            check_full_tuning(kind)
        return make_reference(kind, self.model)

    def _slice_tokens(self, wanted: int) -> int | None:
        if self.reference is None or not wanted or not can_slice(self.model.config):
            return None
        with self.trainer.accelerator.autocast(), self.reference.serving(self.model) as served:
            return wanted if slices_agree(served, probe_tokens(self.model)[0]) else None

    def _replace_methods(self) -> None:
        trainer = self.trainer
        # The loss is divided by the counts of the whole step, and must not be divided again by the number of
        # micro-batches. Before transformers 5.19 only the second attribute does that, with a count that is not None.
        trainer.loss_is_scaled_for_ga = True
        trainer.model_accepts_loss_kwargs = True
        # A loss that is not finite stops the run, and the trainer's own look at each loss waits for the device.
        trainer.args.logging_nan_inf_filter = False
        trainer.get_batch_samples = self._get_batch_samples
        trainer.compute_loss = self._compute_loss
        self._log, trainer.log = trainer.log, self._log_with_means
        trainer.add_callback(_Callback(self))

    def _get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device | None = None
    ) -> tuple[list[Any], Tensor]:
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        for batch in batches:
            self._refuse_batch(batch)
        n_response = self.driver.take(batches, self.trainer.state.global_step)
        self._planned_shapes = {id(batch[KEY]): batch["input_ids"].shape for batch in batches}
        if batches and self._unseen_step:
            self._unseen_step = False
            if not any(batch[KEY].per_aligned for batch in batches):
                logger.warning(
                    "no token of the first step is aligned: its prompts have no label -100. If the data train on "
                    "prompts as well, SelfAug has nothing to hold."
                )
        return batches, n_response

    def _refuse_batch(self, batch: Any) -> None:
        _refuse_batch(batch, self.model)
        _refuse_layout(batch, self._tokens)

    def _inspect_packing(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        """Check the first micro-batch with several documents in a row."""
        if not self._unseen_packing or inputs.get("position_ids") is None:
            return
        documents_BT = document_ids(inputs, self._tokens["pad"])
        first_B = documents_BT.masked_fill(documents_BT < 0, documents_BT.shape[1]).amin(dim=1)
        packed = bool((documents_BT.amax(dim=1) > first_B).any())
        if packed or self._sharded:  # every rank of a sharded model must run the same passes
            self._unseen_packing = False
            given = {name: value for name, value in inputs.items() if name != "labels"}
            check_documents_apart(model, given, documents_BT)

    def _compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if KEY not in inputs:
            if model.training:
                raise ConfigError(
                    "the plan of the step did not reach compute_loss, so its divisors are unknown: the trainer copies "
                    "batches after get_batch_samples and drops what it does not know.",
                    f"keep the key {KEY!r} of a batch.",
                )
            self._refuse_batch(inputs)
        elif self._planned_shapes.get(id(inputs[KEY])) != inputs["input_ids"].shape:
            raise ConfigError(
                f"the trainer made tokens of shape {tuple(inputs['input_ids'].shape)} of a batch after its step was "
                "planned, so the plan's positions are those of other tokens.",
                "switch off context and sequence parallelism, and whatever else cuts or splits batches.",
            )
        accumulated = int(getattr(self.trainer, "current_gradient_accumulation_steps", 0))
        outputs = self.driver.loss(
            model, inputs, accumulated=accumulated or int(self.trainer.args.gradient_accumulation_steps)
        )
        self.meters[model.training].add(outputs.sums, {**outputs.micro.counts, "passes": 1})
        return (outputs.loss, {"loss": outputs.loss}) if return_outputs else outputs.loss

    def _log_with_means(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        accelerator = self.trainer.accelerator
        training = not any(name.startswith("eval_") for name in logs)
        means = self.meters[training].drain(accelerator.device, lambda values: accelerator.reduce(values, "sum"))
        prefix = "" if training else "eval_"
        logs.update({f"{prefix}{name}": means[name] for name in ("nll", "alignment") if name in means})
        if training and self.target is not None:
            logs.update(self.target.logs())
        self._log(logs, *args, **kwargs)

    def before_training(self) -> None:
        """Check model and reference, and restore reference and target from a checkpoint on resume."""
        state, args = self.trainer.state, self.trainer.args
        if self.reference is not None and self._sharded:
            self.reference.prepare(self.model, self.trainer.accelerator)
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if isinstance(args.resume_from_checkpoint, str):  # hosts that go on in another folder set it
            checkpoint = Path(args.resume_from_checkpoint)
        if state.global_step and self.base.weights is not None and (kept := Base.read(checkpoint)) is not None:
            kept.require(self.base.name, self.base.revision, checkpoint)
        if self.target is not None and state.global_step:
            file = checkpoint / TARGET_FILE
            self.target.load_tensors(load_file(file) if file.is_file() else {})
            self.target.apply(self.driver)
        if self.reference is not None and state.global_step:
            file = checkpoint / REFERENCE_FILE
            if file.is_file():
                self.reference.load_tensors(load_file(file), self.model)
            elif self.reference.tensors(self.model):
                raise ConfigError(
                    f"{file.parent} does not hold what reference={self.reference.name!r} was, so training would go on "
                    "against another one.",
                    "resume from a checkpoint of a run with the same settings, or begin a new one.",
                )
        weight = f"alpha {self._alpha:g}" if self.target is None else f"align_target {self.target.target:g}"
        say(f"SelfAug is on: {weight}, reference {'none' if self.reference is None else self.reference.name}.")
        if not self._check or any(p.is_meta for p in self.model.parameters()):
            return

        def check(model: nn.Module) -> None:
            check_head(model)
            if self.reference is not None and not state.global_step:
                check_reference(model, self.reference)

        with self.trainer.accelerator.autocast():
            if self._sharded:
                inside(self.trainer.model_wrapped, check)
                reshard(self.trainer.model_wrapped)
            else:
                check(self.model)

    def save(self, folder: Path) -> None:
        """Save the tensors of reference and target into a checkpoint. Every rank must call this."""
        kept = {
            REFERENCE_FILE: {} if self.reference is None else self.reference.tensors(self.model),
            TARGET_FILE: {} if self.target is None else self.target.tensors(),
        }
        for name, tensors in kept.items():
            if tensors and folder.is_dir() and self.trainer.args.should_save:
                with replacing(folder / name) as temporary:
                    save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, temporary)


def _refuse(trainer: Any) -> None:
    ours = isinstance(getattr(trainer.compute_loss, "__self__", None), _Attached)
    if ours or type(trainer).__module__.startswith("selfaug.training."):
        raise ConfigError(
            "SelfAug is attached to this trainer already.", "attach it once; SelfAugTrainer needs no call."
        )
    if trainer.args.n_gpu > 1:
        raise ConfigError(
            f"the trainer would use torch.nn.DataParallel over {trainer.args.n_gpu} devices, whose copies of the model "
            "know nothing of the step's plan.",
            "launch one process a device: accelerate launch or torchrun.",
        )
    if trainer.compute_loss_func is not None:
        raise ConfigError("compute_loss_func is not supported: the loss is SelfAug's.", "leave it out.")
    if trainer.label_smoother is not None:
        raise ConfigError(
            "label_smoothing_factor is not supported: it needs full logits, which never exist here.", "leave it out."
        )
    if getattr(trainer.args, "loss_type", None) == "dft":
        raise ConfigError("loss_type='dft' is not supported: the loss is SelfAug's.", "leave it out.")
    if getattr(trainer.args, "packing", False) and getattr(trainer.args, "packing_strategy", None) == "wrapped":
        raise ConfigError(
            "packing_strategy='wrapped' keeps no document boundaries, so a document's last token would be compared "
            "with the next document's first.",
            "use packing_strategy='bfd'.",
        )
    config = trainer.model.config.get_text_config()
    weight = getattr(trainer, "router_aux_loss_coef", getattr(config, "router_aux_loss_coef", 0.0))
    if getattr(trainer, "aux_loss_enabled", getattr(config, "output_router_logits", False)) and weight:
        raise ConfigError(
            f"router_aux_loss_coef={weight}: the load-balancing loss of experts is not computed.",
            "set router_aux_loss_coef=0, or output_router_logits=False in the model's configuration.",
        )
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled or parallel.sp_enabled):
        raise ConfigError(
            "tensor, context and sequence parallelism split what the alignment compares, and are not supported.",
            "use DDP, FSDP2 or ZeRO (data parallelism).",
        )
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and getattr(plugin, "fsdp_version", 1) == 1:
        raise ConfigError(
            "FSDP version 1 hides the adapter from its own switch, so the reference pass would see it switched on.",
            "use FSDP2 (fsdp_version: 2 in the accelerate configuration).",
        )
    has_adapter = hasattr(trainer.model, "get_base_model")
    if getattr(plugin, "activation_checkpointing", False) and has_adapter:
        raise ConfigError(
            "FSDP's own activation checkpointing gives the layers other names, under which PEFT finds no adapter to "
            "save: checkpoints and the finished adapter would be empty.",
            "set fsdp_activation_checkpointing: false in the accelerate configuration, and use gradient_checkpointing.",
        )
    check_quantised(quantised=getattr(trainer.model, "hf_quantizer", None) is not None, adapted=has_adapter)


def _refuse_batch(batch: Any, model: torch.nn.Module) -> None:
    if not isinstance(batch, dict) and not hasattr(batch, "keys"):
        raise ConfigError(f"the collator gives a {type(batch).__name__}, not a dict.", "use one that gives a dict.")
    missing = {"input_ids", "labels"} - set(batch.keys())
    if missing:
        raise ConfigError(
            f"a batch has no {' and no '.join(sorted(missing))}, so prompt and response cannot be distinguished.",
            "use a collator that gives labels with -100 at prompt tokens.",
        )
    mask = batch.get("attention_mask")
    square = mask is not None and mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[2] == mask.shape[3]
    if square and not attends_throughout(model.config):
        raise ConfigError(
            "the attention mask has four dimensions, and stands for that of every layer, also of those that do "
            "not attend to all of it; the reference pass would keep to their own kind.",
            "use a collator that gives a mask of rows and tokens, or position_ids that begin anew at each document.",
        )
    if mask is not None and mask.dim() != 2 and not square:
        raise ConfigError(
            f"the attention mask has {mask.dim()} dimensions, so padding and documents cannot be found by it.",
            "use a collator that gives a mask of rows and tokens, or position_ids that begin anew at each document.",
        )
    if mask is None and batch.get("position_ids") is None:
        raise ConfigError(
            "a batch has neither attention_mask nor position_ids, so padding would be taken for prompt.",
            "use a collator that gives one of them.",
        )


def _tokens_of(trainer: Any) -> dict[str, int | None]:
    """Return the ids of the tokens that pad, begin and end a text; ``None`` where the trainer does not say."""
    given = getattr(trainer, "processing_class", None)
    tokenizer = getattr(given, "tokenizer", given)  # a processor holds a tokenizer
    return {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}


def _refuse_layout(batch: Any, tokens: Mapping[str, int | None]) -> None:
    if batch["labels"].shape != batch["input_ids"].shape:
        raise ConfigError(
            f"labels of shape {tuple(batch['labels'].shape)} came with tokens of shape "
            f"{tuple(batch['input_ids'].shape)}: the trainer cuts labels to the logits that it keeps.",
            "switch that off (in ms-swift --use_logits_to_keep false): logits never exist in full here.",
        )
    positions = batch.get("position_ids")
    if positions is not None and positions.numel() != batch["input_ids"].numel():
        raise ConfigError(
            f"position_ids of shape {tuple(positions.shape)} came with tokens of shape "
            f"{tuple(batch['input_ids'].shape)}: one number a token is needed.",
            "choose a length of packed rows that needs no more padding (in LLaMA-Factory a cutoff_len that 8 divides), "
            "and a model of text alone.",
        )
    for name in batch.keys() - _TEXT_KEYS:
        # Token types of plain text are all 0.
        if not isinstance(batch[name], Tensor) or bool(batch[name].any()):
            raise ConfigError(
                f"a batch holds {name!r}, which would reach neither the loss nor the reference pass.",
                "train on text with equal weights, or remove it in the collator if the model does not need it.",
            )
    mask = batch.get("attention_mask")
    if mask is None:
        _refuse_unmarked_padding(batch, tokens)
        return
    documents_BT = mask if mask.dim() == 2 else document_ids(batch) + 1
    # Unsloth drops the mask in training, which is right behind a causal model's text only.
    if "unsloth" in sys.modules and not bool(documents_BT[:, 0].all()):
        raise ConfigError(
            "rows are padded on the left, and Unsloth trains without the attention mask: text would see padding.",
            "set tokenizer.padding_side = 'right'.",
        )
    _refuse_unmarked_documents(documents_BT, batch.get("position_ids"))


def _refuse_unmarked_padding(batch: Mapping[str, Any], tokens: Mapping[str, int | None]) -> None:
    """Refuse rows that begin or end in padding whose positions go on from, or into, those of a document."""
    pad = tokens["pad"]
    tokens_BT, documents_BT = batch["input_ids"].cpu(), document_ids(batch, pad)
    rows, width = tokens_BT.shape
    run = 2 if pad in (tokens["bos"], tokens["eos"]) else 1  # one such token may be the document's own
    if width <= run:
        return
    pads_BT = (batch["labels"].cpu() == IGNORED) & (documents_BT >= 0)
    if pad is not None:
        pads_BT &= tokens_BT == pad
    left = pads_BT[:, :run].all(dim=1) & (documents_BT[:, 0] == documents_BT[:, run])
    right = pads_BT[:, -run:].all(dim=1) & (documents_BT[:, -1] == documents_BT[:, -1 - run])
    if (pad is not None and bool((left | right).any())) or (pad is None and rows > 1):
        raise ConfigError(
            "a batch has no attention mask of rows and tokens, and its position_ids do not tell padding from "
            "documents, so padding would be aligned.",
            "use a collator that gives attention_mask, or numbers padding from 0; and give the trainer its tokenizer.",
        )


def _refuse_unmarked_documents(mask_BT: Tensor, position_ids: Tensor | None) -> None:
    """Refuse rows whose mask numbers documents that position_ids do not show."""
    mask_BT = mask_BT.cpu()
    begins_BT = (mask_BT[:, 1:] != mask_BT[:, :-1]) & (mask_BT[:, 1:] > 0) & (mask_BT[:, :-1] > 0)
    if position_ids is not None:
        begins_BT &= position_ids.cpu().reshape(mask_BT.shape)[:, 1:] != 0
    if bool(begins_BT.any()):
        raise ConfigError(
            "the attention mask numbers several documents in a row, and position_ids run on through them, so the "
            "reference pass would give their tokens other positions.",
            "give position_ids that begin at 0 in each document (in axolotl leave squash_position_ids off).",
        )


class _Callback(TrainerCallback):
    """Callback that checks before training, requires finite losses, and saves the reference."""

    def __init__(self, attached: _Attached) -> None:
        self._attached = attached

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._attached.before_training()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._attached.driver.require_finite(state.global_step + 1)
        if self._attached.target is not None:
            self._attached.target.follow(self._attached.driver, state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._attached.save(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
