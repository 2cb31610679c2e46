"""`SelfAugTrainer`: TRL's `SFTTrainer` with the loss of a method, its reference, and sealed checkpoints."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from selfaug.before.adapter_start import AdapterStart
from selfaug.before.align_rows import align_rows, beside, share_of
from selfaug.before.context import BeforeTraining
from selfaug.before.fisher import ensure_fisher
from selfaug.before.generated_rows import check_generation, rows_with_generated
from selfaug.before.mixing import mixed, rows_of_file
from selfaug.before.probe_rows import answered_rows
from selfaug.before.token_weights import scores_of_base, token_weights
from selfaug.common.errors import ConfigError
from selfaug.common.terminal import is_main, say
from selfaug.data.vocabulary import check_table
from selfaug.methods import get_method
from selfaug.methods.adapters import asks_base, check_adapter, check_weights
from selfaug.model.checks import check_head, check_packing, may_skip_weights, probe_tokens
from selfaug.model.libraries import keep_nothing_gathered, lora_pairs, saving_whole, spare_refused_modules
from selfaug.model.parts import body_of, depends_on_what_follows, head_layer, model_type, takes_documents_in_a_row
from selfaug.model.sharding import reshard, whole_shape
from selfaug.objective.activation_terms import find_modules
from selfaug.planning.reference_batch import ReferenceLayout
from selfaug.reference import Reference, make_reference
from selfaug.reference.adapter import BaseReference, InitialReference
from selfaug.reference.cache_key import refuse_uncacheable
from selfaug.reference.cached import CachedReference, ReferenceCache, open_cache
from selfaug.reference.checks import check_full_tuning, check_peft, check_quantised, check_reference
from selfaug.reference.passes import can_slice, slices_agree
from selfaug.run.checkpoint import step_of
from selfaug.step.driver import Draw, ReadingCollator, StepDriver
from selfaug.step.forward import StepObjective, inside, install
from selfaug.step.shift_target import ShiftTarget
from selfaug.training.around import AroundSteps
from selfaug.training.checkpoints import Checkpoints
from selfaug.training.config import SelfAugConfig
from selfaug.training.metrics import Metrics
from selfaug.training.probe import Probe, check_probe_base, kl_rows, random_state_kept
from selfaug.training.rows import (
    check_rows,
    formatted,
    prepare_rows,
    require_aligned_tokens,
    takes_items,
    with_empty_rows,
)
from selfaug.training.sharding import check_sharding, sharding_of

if TYPE_CHECKING:
    from selfaug.data.prompts import Renderer

__all__ = ["SelfAugTrainer"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class SelfAugTrainer(SFTTrainer):
    """``loss = Σ nll / n_response + α · Σ_drawn kl / (f · n_aligned)``, over the whole optimiser step.

    ``f = align_fraction · align_token_fraction`` is the probability that an aligned token is drawn. This is the default
    method's loss; ``args.method`` chooses another.

    The trainer takes the arguments and data formats of `trl.SFTTrainer`, and also rows of `selfaug.Record`
    (``question``, ``documents``, ``answer``). Of ``messages`` it trains the assistant turns under any chat template.

    Args:
        model: Model or its name, as in `SFTTrainer`.
        args: Configuration, of which the trainer uses a copy.
        renderer: Renderer of the prompts; ``None`` for the tokenizer's default.
        kwargs: Other arguments of `SFTTrainer`.

    Raises:
        ConfigError: If settings, model and reference cannot work together.
        DataError: If a data set has no aligned token while α > 0.
    """

    _tag_names = ("trl", "sft", "selfaug")
    _name = "SelfAug"
    data_collator: Any
    # Our loss is divided by the counts of the whole step already.
    loss_is_scaled_for_ga = True

    def __init__(
        self, model: Any, args: SelfAugConfig | None = None, *, renderer: Renderer | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(args, SelfAugConfig):
            args = SelfAugConfig(**({} if args is None else args.to_dict()))
        if kwargs.get("compute_loss_func") is not None:
            raise ConfigError("compute_loss_func is not supported: the loss is the method's.", "choose --method.")
        given = getattr(model, "hf_quantizer", None) or kwargs.get("quantization_config")
        adapted = kwargs.get("peft_config") is not None or hasattr(model, "get_base_model")
        dora = args.use_cpu and getattr(kwargs.get("peft_config"), "use_dora", False)
        check_quantised(
            quantised=given is not None,
            adapted=adapted,
            dora_in_8_bits_on_cpu=bool(dora and getattr(given, "load_in_8bit", False)),
        )
        if kwargs.get("peft_config") is not None:
            spare_refused_modules(kwargs["peft_config"], model_type(model, args))
            if args.compares:
                check_peft(kwargs["peft_config"], args.reference)
            if asks_base(get_method(args.method), args) or args.probe is not None:
                check_peft(kwargs["peft_config"], "base")
        self.method = get_method(args.method)
        if isinstance(model, str) or kwargs.get("peft_config") is not None:
            check_adapter(self.method, kwargs.get("peft_config"))
        if args.changes.adapter is not None and kwargs.get("peft_config") is not None:
            kwargs["peft_config"] = args.changes.adapter(kwargs["peft_config"])
        self._check_data(args, kwargs)
        self._chosen_renderer = renderer
        self._max_length = args.max_length
        own = copy.copy(args)
        # We delete old checkpoints after the new one is sealed, so that a killed run always has a complete one.
        own.save_total_limit = None
        # A loss that is not finite stops the run, and transformers' own look at each loss waits for the device; so does
        # a copy to the device that is not made in the background.
        own.logging_nan_inf_filter = False
        own.accelerator_config = copy.copy(args.accelerator_config)
        own.accelerator_config.non_blocking = args.dataloader_pin_memory
        if args.padding_free and not args.packing:
            # We fit rows before TRL sees them, and TRL refuses a length limit that it would not enforce.
            own.max_length = None
        # These are set by `_prepare_dataset`, which TRL's constructor calls.
        self._raw_rows: Any = None
        self._rows: Any = None
        self._cached_tables: dict[str, Dataset] = {}
        self._align_rows: Dataset | None = None
        self._rows_of: Callable[..., Any]
        self._retokenise: Callable[[Any], Any]
        self._pack: Callable[[Any], Any]
        super().__init__(model, own, **kwargs)
        own.max_length = args.max_length

        self.sharded = bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)
        # FSDP and ZeRO stage 3 split the weights themselves: the model computes only in a call of its wrapper.
        self.splits_weights = bool(self.is_fsdp_enabled or is_deepspeed_zero3_enabled())
        self._begun = not self.splits_weights
        adapted = hasattr(self.model, "get_base_model")
        self.base_model = self.model.get_base_model() if adapted else self.model
        peft_config = self.model.active_peft_config if adapted else None
        self._refuse_unsupported(peft_config)
        check_adapter(self.method, peft_config)
        check_probe_base(self.args, adapted=adapted)
        layout = ReferenceLayout(
            whole=depends_on_what_follows(self.model.config), concatenate=takes_documents_in_a_row(self.model)
        )
        before = self._before_training(peft_config, single_rows=layout.whole)
        check_generation(before)
        start = self.args.changes.start
        self._start = None if start is None else AdapterStart(before, start)
        if args.align_data is not None:
            if peft_config is None and args.reference_cache is None:
                check_full_tuning(args.reference)
            self._add_align_rows(before)
        if self.args.freeze_head:
            self._freeze_head()
        self._cache = self._open_cache()
        self.reference = self._make_reference(peft_config)
        activation_term = self.args.changes.activation_term
        if activation_term is not None:
            find_modules(body_of(self.base_model), activation_term.kinds)
        memory_mb = self.args.objective_memory_mb
        slice_tokens = self._slice_tokens(catches_activations=activation_term is not None)
        proximal = self.args.changes.proximal
        earlier = None if proximal is None else InitialReference(self.base_model)
        objective = StepObjective(
            self.args.changes.terms,
            self.reference,
            block_bytes=None if memory_mb is None else memory_mb * 2**20,
            implementation=self.args.objective,
            auxiliary=self.aux_loss_enabled,
            parameter_terms=self.args.changes.parameter_terms,
            activation_term=activation_term,
            slice_tokens=slice_tokens,
            reweigh=self.args.changes.reweigh,
            proximal=None if proximal is None else proximal.weigh,
            earlier=earlier,
        )
        install(self.base_model, objective)
        self.driver = StepDriver(
            objective,
            self._draw(),
            ReferenceLayout(layout.whole, layout.concatenate, slice=slice_tokens),
            self.accelerator,
            sharded=self.splits_weights,
            auxiliary_weight=self.router_aux_loss_coef if self.aux_loss_enabled else 0.0,
            cache=self._cache,
        )
        self._measures = {mode: self._new_metrics() for mode in ("train", "eval")}
        self._checkpoints = Checkpoints(self.accelerator, args.save_total_limit)
        self._cache_ready = self._fisher_ready = False
        self._resumed_from: Path | None = None
        target, share = self.args.align_target, self.args.align_fraction * self.args.align_token_fraction
        self._target = None if target is None else ShiftTarget(target, self.args.alignment_weight, share)
        self._around = AroundSteps(self.base_model, self.args.changes, self.driver, earlier, self._target)
        self.add_callback(_StopOnNonFinite(self.driver))
        self.add_callback(_Begin(self))
        self.add_callback(self._around)
        self.restored_from: Path | None = None
        self._probe_rows: Any = None
        self._probe: Probe | None = None
        if self.args.probe is not None:
            self._probe = Probe(self.args, self._measure_probe, partial(Trainer.log, self))
            self.add_callback(self._probe)

    @property
    def probe_outcome(self) -> dict[str, Any]:
        """Where the probe's limit was broken, and the step that the weights went back to; empty where it holds."""
        if self._probe is None or self._probe.broken is None:
            return {}
        step, kl = self._probe.broken
        back = None if self.restored_from is None else step_of(self.restored_from)
        return {"step": step, "probe_kl": kl, "probe_limit": self.args.probe_limit, "restored_step": back}

    # ---- checks, and the reference ----------------------------------------------------------------------------

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

    def _refuse_unsupported(self, peft_config: Any) -> None:
        tied = bool(getattr(self.model.config.get_text_config(), "tie_word_embeddings", False))
        eight_bit = bool(getattr(self.base_model, "is_loaded_in_8bit", False))
        check_sharding(sharding_of(self), self.args, peft_config, tied=tied, eight_bit=eight_bit)
        for part in self.method.parts:
            if part.reads_weights:
                check_weights(part.name, lora_pairs(self.base_model))
        if not self.args.compares:
            return
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled or parallel.sp_enabled):
            raise ConfigError(
                "tensor, context and sequence parallelism split what the alignment compares, and are not supported.",
                "use DDP, FSDP2 or ZeRO (data parallelism), or alpha=0.",
            )
        if self._is_vision_dataset:
            raise ConfigError("alignment on image data is not supported.", "train on text, or set alpha=0.")

    def _make_reference(self, peft_config: Any) -> Reference | None:
        if not self.args.compares:
            return None
        if peft_config is not None:
            check_peft(peft_config, self.args.reference)
        elif self._cache is None:
            check_full_tuning(self.args.reference)
        if self._cache is not None:
            return CachedReference(self.base_model, self._cache.key.weights)
        if self.args.reference == "initial" and is_deepspeed_zero3_enabled():
            keep_nothing_gathered(self.accelerator)
        init_kwargs = dict(self.args.model_init_kwargs or {})
        init_kwargs.pop("device_map", None)
        return make_reference(self.args.reference, self.base_model, **init_kwargs)

    def _draw(self) -> Draw:
        return Draw(
            seed=self.args.seed,
            align_fraction=self.args.align_fraction,
            align_token_fraction=self.args.align_token_fraction,
            align_boundary=bool(self.args.align_boundary),
            align=self.args.aligns,
            compare_response=self.args.compares_response,
            use_reference=self.args.compares,
        )

    def _slice_tokens(self, *, catches_activations: bool) -> int | None:
        """Return the number of tokens of a slice of long prompts; ``None`` for reference passes without slices."""
        # Activations inside the layers are recorded in a single pass.
        at_once = catches_activations or self.args.reference_slice == 0
        if self.reference is None or at_once or not can_slice(self.model.config):
            return None
        wanted: int = self.args.reference_slice
        if self.splits_weights or any(p.is_meta for p in self.base_model.parameters()):
            return wanted  # `begin` tries it, in a call of the wrapped model
        return wanted if self._slices_agree(self.base_model) else None

    def _slices_agree(self, model: nn.Module) -> bool:
        assert self.reference is not None
        with self.accelerator.autocast(), self.reference.serving(model) as served:
            agree = slices_agree(served, probe_tokens(model)[0])
        if not agree:
            logger.warning("this model gives other hidden states in slices: reference_slice has no effect")
        return agree

    def _freeze_head(self) -> None:
        head_layer(self.base_model).requires_grad_(False)
        if self.args.gradient_checkpointing:
            # Re-entrant checkpointing needs an input with gradients, which a frozen tied embedding does not give.
            self.model.enable_input_require_grads()

    # ---- the reference cache ----------------------------------------------------------------------------------

    def _open_cache(self) -> ReferenceCache | None:
        """Open the cache that the settings name, and announce what will be written.

        Raises:
            ConfigError: If the cache belongs to another model or data, or cannot be used or written in this run.
        """
        if self.args.reference_cache is None or not self.args.compares:
            return None
        refuse_uncacheable(self.base_model)
        if not self._cached_tables:
            raise ConfigError(
                "reference_cache needs tokenised rows, and skip_prepare_dataset leaves them to somebody else.",
                "leave --reference_cache or skip_prepare_dataset out.",
            )
        with self.accelerator.autocast():
            cache = open_cache(
                Path(self.args.reference_cache).expanduser(),
                self.base_model,
                self._tokenizer,
                self._cached_tables,
                align_boundary=bool(self.args.align_boundary),
                precision=self.accelerator.mixed_precision,
                dtype=self.args.cache_dtype,
                agree=lambda mine: broadcast_object_list([mine])[0],
            )
        cache.announce(cache.missing())
        return cache

    def write_reference_cache(self, *, thorough: bool = False) -> int:
        """Write the missing shards of the reference cache, compare a sequence, and return the number of shards written.

        Args:
            thorough: Whether existing shards are read too, and damaged ones written again.

        Raises:
            ConfigError: If the settings name no cache, or it does not agree with the model.
        """
        if self._cache is None:
            raise ConfigError("no reference_cache is named, so nothing can be written.", "name it: --reference_cache.")
        cache, layout = self._cache, self.driver.layout

        def write(model: nn.Module) -> int:
            written = cache.write(
                model,
                layout,
                rank=self.accelerator.process_index,
                ranks=self.accelerator.num_processes,
                wait=self.accelerator.wait_for_everyone,
                thorough=thorough,
                most=self._most if self.splits_weights else None,
            )
            cache.compare(model, layout)
            return written

        with self.accelerator.autocast():
            written = self._compute(write)
        self._cache_ready = True
        return written

    def _compute(self, function: Callable[[nn.Module], T]) -> T:
        """Return ``function(model)`` where the model computes: as it is, or in a call of its wrapper."""
        return inside(self.model_wrapped, function) if self.splits_weights else function(self.base_model)

    def _most(self, number: int) -> int:
        mine = torch.tensor([number], device=self.accelerator.device)
        return int(self.accelerator.gather(mine).max())

    # ---- data -------------------------------------------------------------------------------------------------

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        def trl(rows: Any, *, pack: bool, shuffle: bool) -> Any:
            own = copy.copy(args)
            own.shuffle_dataset = shuffle
            if not pack:
                own.max_length = None  # we fit rows: TRL would cut off the answers after long documents
            return super(SelfAugTrainer, self)._prepare_dataset(rows, processing_class, own, pack, None, dataset_name)

        if formatting_func is not None:
            dataset = formatted(dataset, formatting_func, args.dataset_text_field)

        def prepare(rows: Any, name: str, change: Any = None, max_length: int | None = self._max_length) -> Any:
            return prepare_rows(
                rows,
                tokenizer=self._tokenizer,
                renderer=self._chosen_renderer,
                max_length=max_length,
                cut_prompt_left=args.cut_prompt_left,
                on_lost_answer=args.on_lost_answer,
                tokenise=lambda table: trl(table, pack=False, shuffle=False),
                name=name,
                change=change,
                text_field=args.dataset_text_field,
                processes=args.dataset_num_proc,
            )

        prepared = prepare(dataset, dataset_name)
        if dataset_name == "train":
            self._raw_rows = dataset
            self._retokenise = lambda change: prepare(dataset, "train", change)
            self._pack = lambda rows: trl(self._with_align_rows(rows), pack=packing, shuffle=args.shuffle_dataset)

            def rows_of(path: Path, max_length: int | None = self._max_length) -> Any:
                tokenise = partial(prepare, name=str(path), max_length=max_length)
                return rows_of_file(path, self._tokenizer, self._chosen_renderer, max_length, tokenise)

            self._rows_of = rows_of
            mix = args.changes.mix
            if mix is not None:
                prepared = mixed(prepared, self._rows_of(mix.path), mix, args.seed)
            self._rows = prepared
        if args.aligns:
            if args.align_data is None:
                require_aligned_tokens(prepared, dataset_name, boundary=bool(args.align_boundary))
            if args.reference_cache is not None:
                self._cached_tables[dataset_name] = _cacheable(prepared, dataset_name)
        return trl(prepared, pack=packing, shuffle=args.shuffle_dataset)

    def _add_align_rows(self, before: BeforeTraining) -> None:
        wanted = share_of(len(self._rows), self.args.align_data_share) if isinstance(self._rows, Dataset) else 0
        self._align_rows = align_rows(before, partial(self._rows_of, max_length=None), wanted)
        self.train_dataset = self._pack(self._rows)
        if self.args.reference_cache is not None:
            self._cached_tables["train"] = _cacheable(self._with_align_rows(self._rows), "train")

    def _with_align_rows(self, rows: Any) -> Any:
        if self._align_rows is None:
            return rows
        return beside(rows, self._align_rows, self.args.align_data_share, self.args.seed)

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        ranks = self.accelerator.num_processes
        if not kwargs.get("is_training") and ranks > 1 and not self.args.dataloader_drop_last:
            dataset = with_empty_rows(dataset, ranks * batch_size)
        collate: Any = self.data_collator
        # accelerate reads a stream in one process and cuts its batches into parts, which knows tensors only.
        if isinstance(dataset, Dataset) and not self.args.accelerator_config.dispatch_batches:
            self.data_collator = ReadingCollator(collate, self._draw())
        try:
            return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)
        finally:
            self.data_collator = collate

    # ---- before the first step and after the last -------------------------------------------------------------

    def _before_training(self, peft_config: Any, *, single_rows: bool) -> BeforeTraining:
        return BeforeTraining(
            model=self.base_model,
            peft_config=peft_config,
            config=self.args,
            method=self.method,
            accelerator=self.accelerator,
            tokenizer=self._tokenizer,
            chosen_renderer=self._chosen_renderer,
            max_length=self._max_length,
            takes_items=takes_items(self._raw_rows),
            rows=self._rows,
            rows_of=getattr(self, "_rows_of", lambda path: None),
            single_rows=single_rows,
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, or resume from a complete checkpoint with the same reference.

        Before the first step the method computes what it needs of the base model; after the last it may change the
        model, unless a signal ended the training.

        Raises:
            ConfigError: If the checkpoint is incomplete, has the model alone, or has another reference.
        """
        peft_config = None if self.base_model is self.model else self.model.active_peft_config
        before = self._before_training(peft_config, single_rows=self.driver.layout.whole)
        if self.args.changes.generates:
            self._rows = rows_with_generated(before, self._retokenise)
            self.train_dataset = self._pack(self._rows)
            before = self._before_training(peft_config, single_rows=self.driver.layout.whole)
        if self.args.changes.weigh is not None:
            self.driver.weigh = token_weights(self.method, self.args, scores_of_base(before), self._rows)
        self._ready_fisher()
        if self._start is not None:
            self._start.save()
        if self.args.probe is not None:
            with random_state_kept():
                self._probe_rows = answered_rows(before, self.args.probe)
        folder = self._checkpoints.resume(resume_from_checkpoint, Path(self.args.output_dir))
        self._resumed_from = folder
        if not self.splits_weights:
            self._check_and_restore(folder)
        self._around.prepare()
        if folder is not None:
            self._around.load_tensors(self._checkpoints.method_tensors(folder))
        result = super().train(resume_from_checkpoint=None if folder is None else str(folder), **kwargs)
        if self._target is not None:
            result.metrics.update(self._target.logs() | {"align_target": self._target.target})
        if not any(getattr(callback, "signal", 0) for callback in self.callback_handler.callbacks):
            self._go_back()
            self._settle_start()
            for finish in self.args.changes.finish:
                finish(self.model)
        return result

    def begin(self) -> None:
        """Shard the reference, check the model and restore the reference, once the wrapper has split the weights."""
        if self._begun:
            return
        self._begun = True
        if self.reference is not None:
            self.reference.prepare(self.base_model, self.accelerator)
        self._check_and_restore(self._resumed_from)
        reshard(self.model_wrapped)

    def _check_and_restore(self, folder: Path | None) -> None:
        """Check model and reference, and restore the reference from the checkpoint ``folder``, if there is one."""
        if any(p.is_meta for p in self.base_model.parameters()):
            return
        if self.reference is not None and self.splits_weights:
            self._checkpoints.restore_reference(self.reference, self.base_model, folder)
        with self.accelerator.autocast():
            self._check_model(fresh=folder is None or not self.splits_weights)
        if self.reference is not None and not self.splits_weights:
            self._checkpoints.restore_reference(self.reference, self.base_model, folder)

    def _check_model(self, *, fresh: bool) -> None:
        embeddings = whole_shape(self.model.get_input_embeddings().weight)[0]
        check_table(self._rows, embeddings, self._tokenizer, "the training data")
        if self._align_rows is not None:
            check_table(self._align_rows, embeddings, self._tokenizer, "align_data")

        def check(model: nn.Module) -> bool:
            check_head(model)
            if self.padding_free:
                check_packing(model, self.data_collator)
            if self.reference is not None and self.args.check_reference:
                check_reference(model, self.reference, fresh=fresh)
            return not self.splits_weights or not self.driver.layout.slice or self._slices_agree(model)

        if not self._compute(check):
            self.driver.objective.slice_tokens = None
            self.driver.layout = replace(self.driver.layout, slice=None)
        self._choose_ddp_search()
        self._ready_cache()

    def _choose_ddp_search(self) -> None:
        """Let DDP search each backward pass for unused weights only where there may be some."""
        handler = self.accelerator.ddp_handler
        if handler is None or self.sharded or self.args.ddp_find_unused_parameters is not None:
            return
        if self.accelerator.num_processes == 1:
            return
        may_skip = may_skip_weights(self.base_model)
        reentrant = self.args.gradient_checkpointing and (self.args.gradient_checkpointing_kwargs or {}).get(
            "use_reentrant"
        )
        # Re-entrant checkpointing fails with the search, so there it stays as transformers has it.
        if not (may_skip and reentrant):
            handler.find_unused_parameters = may_skip

    def _ready_cache(self) -> None:
        if self._cache is None or self._cache_ready:
            return
        if self.splits_weights and self._resumed_from is not None and self.base_model is self.model:
            # Weights are split after a checkpoint is read, and in full fine-tuning they are the base's no more.
            if self._cache.missing():
                raise ConfigError(
                    f"the reference cache in {self._cache.folder} is not whole, and a resumed full fine-tuning cannot "
                    "write it any more.",
                    "restore the cache that the run began with, or begin a new run.",
                )
            self._cache_ready = True
            return
        self.write_reference_cache()

    def _ready_fisher(self) -> None:
        wanted = self.args.changes.fisher
        if wanted is not None and not self._fisher_ready:
            ensure_fisher(self._before_training(self.model.active_peft_config, single_rows=False), wanted)
            self._fisher_ready = True

    def _measure_probe(self) -> list[tuple[float, int]]:
        """Return sum and number of tokens of every item of the probe; each rank measures its share."""
        share = self._probe_rows[self.accelerator.process_index :: self.accelerator.num_processes]
        # With a reference model the base is that model, without one the trained model with its adapter off.
        adapted = self.base_model is not self.model
        base = BaseReference() if adapted or self.reference is None else self.reference
        with self.accelerator.autocast():
            sums = kl_rows(self.base_model, base, share, single_rows=self.driver.layout.whole)
        return list(gather_object(sums))

    def _go_back(self) -> None:
        """Load the weights of the last checkpoint within the probe's limit, if the run broke it and is to go back."""
        if self._probe is None or self._probe.broken is None or not self._probe.restores:
            return
        folder = self._probe.best(self.state.log_history, Path(self.args.output_dir))
        if folder is None:
            step, kl = self._probe.broken
            raise ConfigError(
                f"probe_limit={self.args.probe_limit} was broken at the first probe, after step {step} "
                f"({kl:.4g} nats a token), so there is no checkpoint within it to go back to.",
                "probe more often (--probe_steps), lower --learning_rate, raise --alpha, or raise --probe_limit.",
            )
        self._load_from_checkpoint(str(folder))
        self.accelerator.wait_for_everyone()
        self.restored_from = folder
        if is_main():
            say(f"went back to {folder.name}, the last probe within probe_limit {self.args.probe_limit:g}.")

    def _settle_start(self) -> None:
        if self._start is None:
            return
        self._start.finish(self.model.active_peft_config)
        self._start = None
        if self.reference is not None:  # from here on the model with its adapter off is the base
            self.reference = self.driver.objective.reference = BaseReference()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimiser of `SFTTrainer` with the method's factor on the learning rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self.args.changes.learning_rate_factor
        return optimizer

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers checks for the end only after a step, so a run that was stopped after its last checkpoint and
        # resumed would get one step too many.
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model or adapter: a sharded one is gathered. Every rank must call this.

        Only checkpoints, for which `Trainer` calls it, may be saved in parts.
        """
        with contextlib.nullcontext() if _internal_call else saving_whole(self):
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # TRL's method, which is bypassed below, writes a model card that says "SFT"; the run folder has ours.
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            self._checkpoints.begin(folder)
        self.accelerator.wait_for_everyone()
        Trainer._save_checkpoint(self, model, trial)
        num_tokens = self._checkpoints.num_tokens()
        tensors = {} if self.reference is None else self.reference.tensors(self.base_model)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._checkpoints.finish(
                folder,
                self.reference,
                tensors,
                method=self._around.tensors(),
                num_tokens=num_tokens,
                model_only=self.args.save_only_model,
                best=self._kept_checkpoint(),
            )

    def _kept_checkpoint(self) -> str | None:
        """Return the older checkpoint that may be gone back to, which is not deleted with the others."""
        history, best = self.state.log_history, self.state.best_model_checkpoint
        if self._probe is not None and self.state.global_step not in self._probe.within(history):
            best = self._probe.best(history, Path(self.args.output_dir)) or best
        return None if best is None else str(best)

    # ---- the step ---------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Return the step's micro-batches with their parts of the plan, and its response tokens over all ranks."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        return batches, self.driver.take(batches, self.state.global_step)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return a micro-batch's share of the step's loss, times the number of ranks (DDP, FSDP average gradients)."""
        self.begin()  # an evaluation may come before any training
        self._ready_cache()
        outputs = self.driver.loss(model, inputs, accumulated=self._accumulated())
        self._measures["train" if self.model.training else "eval"].add(outputs)
        if self.model.training:
            self._checkpoints.add_tokens(outputs.micro.counts["tokens"])
        if not return_outputs:
            return outputs.loss
        with torch.no_grad():
            return outputs.loss, model(**{k: v for k, v in inputs.items() if k != "labels"})

    def _accumulated(self) -> int:
        return int(getattr(self, "current_gradient_accumulation_steps", 1))

    # ---- metrics ----------------------------------------------------------------------------------------------

    def _new_metrics(self) -> Metrics:
        weight = self.router_aux_loss_coef if self.aux_loss_enabled else 0.0
        return Metrics(self.driver.objective, self.accelerator, weight)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the given numbers and the averages since the last log."""
        if self.model.training:
            measured = self._measures["train"].take()
            measured.pop("tokens", None)
            logs.update(measured)
            logs["num_tokens"] = self._checkpoints.num_tokens()
            logs.update({} if self._target is None else self._target.logs())
        Trainer.log(self, logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, and report the means over the set: ``nll``, ``alignment``, the method's terms, and the loss."""
        self._ready_fisher()  # an evaluation may come before any training
        self._measures["eval"] = self._new_metrics()
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.update(self._measures["eval"].take_evaluation(kwargs.get("metric_key_prefix", "eval")))
        return output


def _cacheable(rows: Any, name: str) -> Dataset:
    if not isinstance(rows, Dataset):
        raise ConfigError(
            f"reference_cache needs to know all rows before training, and the {name} data set is a stream.",
            "load it whole (--dataset_streaming false), or leave --reference_cache out.",
        )
    return rows.with_format("torch", ["input_ids", "labels"])


class _Begin(TrainerCallback):
    """Begins the work on a model that its wrapper has just split."""

    def __init__(self, trainer: SelfAugTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the model before the first step."""
        self._trainer.begin()


class _StopOnNonFinite(TrainerCallback):
    """Stops the run before the optimiser step if a loss of the step is not finite."""

    def __init__(self, driver: StepDriver) -> None:
        self._driver = driver

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the losses after the backward pass of the last micro-batch."""
        self._driver.require_finite(state.global_step + 1)
