"""`SelfAugTrainer`: TRL's `SFTTrainer` with the loss of a method, its reference, and checkpoints that are whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selfaug.before.adapter_start import AdapterStart
from selfaug.before.generated_rows import check_generation
from selfaug.common.errors import ConfigError
from selfaug.methods import get_method
from selfaug.methods.adapters import asks_base, check_adapter
from selfaug.model.checks import probe_tokens
from selfaug.model.libraries import spare_refused_modules
from selfaug.model.parts import body_of, depends_on_what_follows, head_layer, model_type, takes_documents_in_a_row
from selfaug.objective.activation_terms import find_modules
from selfaug.reference import Reference, make_reference
from selfaug.reference.checks import check_full_tuning, check_peft
from selfaug.reference.passes import can_slice, slices_agree
from selfaug.step.forward import StepObjective, install, micro_inputs
from selfaug.step.plan import StepPlan, plan_step
from selfaug.step.reference_batch import ReferenceLayout
from selfaug.training.config import SelfAugConfig
from selfaug.training.preparing import PreparingTrainer
from selfaug.training.resuming import StopOnNonFinite
from selfaug.training.rows import check_rows

if TYPE_CHECKING:
    from selfaug.data.prompts import Renderer

__all__ = ["SelfAugTrainer"]

_PLAN = "selfaug"  # key of the plan in a micro-batch, and of the model's extra keyword

logger = logging.getLogger(__name__)


class SelfAugTrainer(PreparingTrainer):
    """``loss = Σ nll / n_response + α · Σ_drawn kl / (f · n_aligned)``, over the whole optimiser step.

    ``f = align_fraction · align_token_fraction`` is the chance with which an aligned token is drawn.

    That is the default; `args.method` says what is trained instead.

    Takes the arguments of `trl.SFTTrainer` and its data formats, and also rows of `selfaug.Record` (``question``,
    ``documents``, ``answer``); ``messages`` rows are trained on their assistant turns whatever the chat template.

    Args:
        model: As in `SFTTrainer`.
        args: A `SelfAugConfig`.
        renderer: How records become prompts; by default the one for the tokenizer.
        kwargs: As in `SFTTrainer`.

    Raises:
        ConfigError: If settings, model and reference cannot work together.
        DataError: If a data set has no aligned token while α > 0.
    """

    _tag_names = ("trl", "sft", "selfaug")
    _name = "SelfAug"
    # Our loss is divided by the counts of the whole step.
    loss_is_scaled_for_ga = True

    def __init__(
        self, model: Any, args: SelfAugConfig | None = None, *, renderer: Renderer | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(args, SelfAugConfig):
            args = SelfAugConfig(**({} if args is None else args.to_dict()))
        if kwargs.get("compute_loss_func") is not None:
            raise ConfigError("compute_loss_func is not supported: the loss is the method's.", "choose --method.")
        if kwargs.get("peft_config") is not None:
            spare_refused_modules(kwargs["peft_config"], model_type(model, args))
            if args.compares:
                check_peft(kwargs["peft_config"], args.reference)
            if asks_base(get_method(args.method), args):
                check_peft(kwargs["peft_config"], "base")
        self.method = get_method(args.method)
        if isinstance(model, str) or kwargs.get("peft_config") is not None:
            check_adapter(self.method, kwargs.get("peft_config"))
        self.renderer = renderer
        self._check_data(args, kwargs)
        self._fit_length = args.max_length
        if args.padding_free and not args.packing:
            # Rows are fitted by us before TRL sees them, and TRL refuses a length that it would not enforce.
            args.max_length = None
        super().__init__(model, args, **kwargs)
        args.max_length = self._fit_length
        self._refuse_unsupported()
        self._base_model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        check_adapter(self.method, None if self._base_model is self.model else self.model.active_peft_config)
        check_generation(self)
        start = self.method.start(args)
        self._start = None if start is None else AdapterStart(self, start)
        if args.freeze_head:
            self._freeze_head(args)
        self.reference = self._make_reference(args)
        self._terms, self._parameter_terms = self.method.terms(args), self.method.parameter_terms(args)
        self._activation_term = self.method.activation_term(args)
        if self._activation_term is not None:
            find_modules(body_of(self._base_model), self._activation_term.kinds)
        self._step = StepObjective(
            self._terms,
            self.reference,
            block_bytes=None if args.objective_memory_mb is None else args.objective_memory_mb * 2**20,
            implementation=args.objective,
            auxiliary=self.aux_loss_enabled,
            parameter_terms=self._parameter_terms,
            activation_term=self._activation_term,
            slice_tokens=self._slice(args),
        )
        install(self._base_model, self._step)
        self._layout = ReferenceLayout(
            whole=depends_on_what_follows(self.model.config),
            concatenate=takes_documents_in_a_row(self.model),
            slice=self._step.slice_tokens,
        )
        self._announce_cache()
        self._meters = {"train": self._meter(), "eval": self._meter()}
        self.add_callback(StopOnNonFinite(self))

    @staticmethod
    def _check_data(args: SelfAugConfig, given: dict[str, Any]) -> None:
        if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
            return
        for name in ("train", "eval"):
            check_rows(
                given.get(f"{name}_dataset"),
                name,
                formatting_func=given.get("formatting_func"),
                text_field=args.dataset_text_field,
                aligns=args.aligns,
            )

    # ---- what is refused, and the reference -------------------------------------------------------------------

    def _refuse_unsupported(self) -> None:
        if self.method.parameter_terms(self.args) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ConfigError(
                f"method={self.method.name!r} penalises the trained weights themselves, which FSDP and ZeRO split up.",
                "train on one device or with DDP, or choose another method.",
            )
        if not self.args.compares:
            return
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled or parallel.sp_enabled):
            raise ConfigError(
                "tensor, context and sequence parallelism split what the alignment compares, and are not supported.",
                "use DDP, FSDP2 or ZeRO (data parallelism), or alpha=0.",
            )
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and getattr(plugin, "fsdp_version", 1) == 1:
            raise ConfigError(
                "FSDP version 1 hides the adapter from its own switch, so the reference pass would see it switched on.",
                "use FSDP2 (fsdp_version: 2 in the accelerate configuration).",
            )
        if self._is_vision_dataset:
            raise ConfigError("alignment on image data is not supported.", "train on text, or set alpha=0.")

    def _make_reference(self, args: SelfAugConfig) -> Reference | None:
        if not args.compares:
            return None
        adapted = self._base_model is not self.model
        if adapted:
            check_peft(self.model.active_peft_config, args.reference)
        elif args.reference_cache is None:
            check_full_tuning(args.reference)
        if args.reference_cache is not None:
            return self._cached_reference(args.reference_cache)
        init_kwargs = dict(args.model_init_kwargs or {})
        init_kwargs.pop("device_map", None)
        return make_reference(args.reference, self._base_model, **init_kwargs)

    def _slice(self, args: SelfAugConfig) -> int | None:
        """Tokens of a slice of long prompts; ``None`` where they go through the reference at once."""
        # A sharded model gathers its weights in every forward: all ranks must run the same number of them.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.reference is None or args.reference_slice == 0 or sharded or not can_slice(self.model.config):
            return None
        if self._activation_term is not None:  # activations inside the layers are caught in one pass
            return None
        if any(p.is_meta for p in self._base_model.parameters()):
            return None
        with self.accelerator.autocast(), self.reference.serving(self._base_model) as served:
            agree = slices_agree(served, probe_tokens(self._base_model)[0])
        if not agree:
            logger.warning("this model gives other hidden states in slices: reference_slice has no effect")
        return args.reference_slice if agree else None

    def _freeze_head(self, args: SelfAugConfig) -> None:
        head_layer(self._base_model).requires_grad_(False)
        if args.gradient_checkpointing:
            # Re-entrant checkpointing passes no gradient on where its input needs none, as behind a tied embedding.
            self.model.enable_input_require_grads()

    # ---- the step ---------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The step's micro-batches, each with its part of the plan; and the step's response tokens over all ranks."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        fractions = (self.args.align_fraction, self.args.align_token_fraction)
        plan = self._plan(batches, self.state.global_step, *fractions, weigh=self._weigh)
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(plan.counts().to(device), reduction="sum")
            plan = plan.with_totals(totals)
        for batch, inputs in zip(batches, self._micro_inputs(plan, *fractions), strict=True):
            batch[_PLAN] = inputs
        return batches, torch.tensor(plan.n_response, device=device)

    def _plan(
        self,
        batches: list[Any],
        step: int,
        align_fraction: float = 1.0,
        align_token_fraction: float = 1.0,
        weigh: Any = None,
    ) -> StepPlan:
        self._ready_cache()  # an evaluation may come before any training
        return plan_step(
            batches,
            seed=self.args.seed,
            step=step,
            align_fraction=align_fraction,
            align_token_fraction=align_token_fraction,
            align_boundary=bool(self.args.align_boundary),
            reference_layout=replace(self._layout, cached=self._cache is not None),
            align=self.args.aligns,
            hold_response=self.args.holds_response,
            weigh=weigh,
        )

    def _micro_inputs(
        self, plan: StepPlan, align_fraction: float = 1.0, align_token_fraction: float = 1.0, *, alone: bool = False
    ) -> list[dict[str, Any]]:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return [
            micro_inputs(
                micro,
                n_response=plan.n_response,
                drawn_divisor=align_fraction * align_token_fraction * plan.n_aligned,
                held_divisor=align_fraction * plan.n_response,
                # What the other ranks do in a batch of an evaluation is not asked: all of them run a reference pass.
                join_reference=sharded and (anywhere or alone) and self._cache is None,
                stored=None if self._cache is None else self._cache.load,
            )
            for micro, anywhere in zip(plan.micro, plan.anywhere, strict=True)
        ]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """One micro-batch's share of the step's loss, times the number of ranks: DDP and FSDP average gradients."""
        mode = "train" if self.model.training else "eval"
        micro = inputs.pop(_PLAN, None)
        if micro is None:  # evaluation: a batch is a step of its own, with every sequence aligned
            plan = self._plan([inputs], step=0)
            micro = self._prepare_inputs(self._micro_inputs(plan, alone=True)[0])
        outputs = model(**inputs, selfaug=micro)
        loss = outputs["loss"]
        if mode == "train":
            loss = loss * self.accelerator.num_processes
        if outputs["auxiliary"] is not None:
            # A mean over the micro-batch: averaged over the accumulated ones, as SFTTrainer does.
            steps = self.current_gradient_accumulation_steps if mode == "train" else 1
            loss = loss + self.router_aux_loss_coef * outputs["auxiliary"] / steps
        for term in self._parameter_terms:
            # Of the weights, not of the data: once a step, on every rank the same.
            steps = self.current_gradient_accumulation_steps if mode == "train" else 1
            loss = loss + term.weight * outputs["penalties"][term.name] / steps
        self._measure(mode, micro, outputs)
        if mode == "train":
            finite = torch.isfinite(loss.detach())
            self._finite = finite if self._finite is None else self._finite & finite
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{k: v for k, v in inputs.items() if k != "labels"})
