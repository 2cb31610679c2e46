"""What do the data set and the method go through before the first step, and the model after the last?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from selfaug.before.adapter_start import AdapterStart
from selfaug.before.fisher import ensure_fisher
from selfaug.before.generated_rows import rows_with_generated
from selfaug.before.mixing import mixed, rows_of_file
from selfaug.before.token_weights import scores_of_base, token_weights
from selfaug.data.vocabulary import check_table
from selfaug.reference.adapter import BaseReference
from selfaug.training.measuring import MeasuringTrainer
from selfaug.training.rows import formatted, prepare_rows, require_aligned_tokens, with_empty_rows

if TYPE_CHECKING:
    from selfaug.data.prompts import Renderer
    from selfaug.methods import Method
    from selfaug.step.forward import StepObjective

__all__ = ["PreparingTrainer"]


class PreparingTrainer(MeasuringTrainer):
    """`MeasuringTrainer` that makes the rows ready, and gives the method its turn before and after the steps.

    Its subclass sets what is declared here without a value before `SFTTrainer` prepares the data sets.
    """

    method: Method
    renderer: Renderer | None
    _fit_length: int | None
    _step: StepObjective
    _train_rows: Any = None
    _rows_of: Callable[[Path], Any]  # the tokenised rows of a file, made as training rows are
    _raw_rows: Any = None
    _prepare: Callable[[Any], Any]  # the tokenised training rows, after a change of records and conversations
    _pack: Callable[[Any], Any]  # what TRL makes of tokenised rows
    _fisher_ready = False
    _start: AdapterStart | None = None
    _weigh: Callable[[Tensor, Tensor], Tensor] | None = None

    # ---- before the first step and after the last -------------------------------------------------------------

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The method may have a learning rate of its own."""
        given = self.args.learning_rate
        self.args.learning_rate = given * self.method.learning_rate_factor(self.args)
        try:
            return super().create_optimizer(*args, **kwargs)
        finally:
            self.args.learning_rate = given

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `ResumableTrainer.train`; then the method may change the model, unless a signal ended the training."""
        if self.method.generates(self.args):
            self._train_rows = rows_with_generated(self, self._prepare)
            self.train_dataset = self._pack(self._train_rows)
        if self.method.needs_scores:
            scores = scores_of_base(self, self._train_rows)
            self._weigh = token_weights(self.method, self.args, scores, self._train_rows)
        self._ready_fisher()
        if self._start is not None:
            self._start.save()
        result = super().train(*args, **kwargs)
        if not any(getattr(callback, "signal", 0) for callback in self.callback_handler.callbacks):
            self._settle_start()
            self.method.finish(self.args, self._base_model)
        return result

    def _settle_start(self) -> None:
        if self._start is None:
            return
        self._start.finish(self.model.active_peft_config)
        self._start = None
        if self.reference is not None:  # with the adapter off the model is the base from here on
            self.reference = self._step.reference = BaseReference()

    def _ready_fisher(self) -> None:
        wanted = self.method.fisher(self.args)
        if wanted is None or self._fisher_ready:
            return
        ensure_fisher(self, wanted)
        self._fisher_ready = True

    def _check_model(self) -> None:
        rows = self.model.get_input_embeddings().weight.shape[0]
        check_table(self._train_rows, rows, self._tokenizer, "the training data")
        super()._check_model()

    # ---- data -------------------------------------------------------------------------------------------------

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        def trl(rows: Any, *, pack: bool, shuffle: bool) -> Any:
            kept, kept_shuffle = args.max_length, args.shuffle_dataset
            if not pack:
                args.max_length = None  # ours to fit: TRL's cut would take the answers behind long documents
            args.shuffle_dataset = shuffle
            try:
                return super(PreparingTrainer, self)._prepare_dataset(
                    rows, processing_class, args, pack, None, dataset_name
                )
            finally:
                args.max_length, args.shuffle_dataset = kept, kept_shuffle

        if formatting_func is not None:
            dataset = formatted(dataset, formatting_func, args.dataset_text_field)

        def prepare(rows: Any, name: str, change: Any = None) -> Any:
            return prepare_rows(
                rows,
                tokenizer=self._tokenizer,
                renderer=self.renderer,
                max_length=self._fit_length,
                cut_prompt_left=args.cut_prompt_left,
                on_lost_answer=args.on_lost_answer,
                tokenise=lambda table: trl(table, pack=False, shuffle=False),
                name=name,
                change=change,
                text_field=args.dataset_text_field,
            )

        prepared = prepare(dataset, dataset_name)
        if dataset_name == "train":
            self._raw_rows = dataset
            self._prepare = lambda change: prepare(dataset, "train", change)
            self._pack = lambda rows: trl(rows, pack=packing, shuffle=args.shuffle_dataset)
        mix = self.method.mix(args) if dataset_name == "train" else None
        if dataset_name == "train":
            self._rows_of = lambda path: rows_of_file(
                path, self._tokenizer, self.renderer, self._fit_length, lambda rows: prepare(rows, str(path))
            )
        if mix is not None:
            prepared = mixed(prepared, self._rows_of(mix.path), mix, args.seed)
        if dataset_name == "train":
            self._train_rows = prepared
        if args.aligns:
            require_aligned_tokens(prepared, dataset_name, boundary=bool(args.align_boundary))
            if args.reference_cache is not None and self._cache is None:
                self._note_rows(prepared, dataset_name)
        return trl(prepared, pack=packing, shuffle=args.shuffle_dataset)

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        ranks = self.accelerator.num_processes
        if not kwargs.get("is_training") and ranks > 1 and not self.args.dataloader_drop_last:
            dataset = with_empty_rows(dataset, ranks * batch_size)
        return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As `MeasuringTrainer.evaluation_loop`, which may come before any training."""
        self._ready_fisher()
        return super().evaluation_loop(*args, **kwargs)
