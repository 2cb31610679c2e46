"""The interface to lm_eval: runs its tasks on the loaded model, and turns its exceptions into errors for the user."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError, DataError, tidy
from selfaug.common.files import read_json
from selfaug.common.fingerprint import file_hash
from selfaug.common.terminal import say
from selfaug.evaluation.choices import check_file
from selfaug.evaluation.general import recorded
from selfaug.evaluation.harness_faults import (
    code_refused,
    offline_where_unreachable,
    quiet,
    repeatable_language_detection,
    translated,
)
from selfaug.evaluation.suites import GeneralTask
from selfaug.run.folder import ADAPTER_CONFIG
from selfaug.run.models import Origin

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfaug.evaluation.parts import Progress

__all__ = ["SEEDS", "Harness", "backend_args", "file_facts"]

SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}
"""lm_eval's own defaults, fixed here."""

# Instructions of IFEval whose check needs data that NLTK downloads.
_NEEDS_NLTK = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
_OWN_TASKS = Path(__file__).parent / "tasks"
_NO_LM_EVAL = "install it: pip install 'selfaug[eval]'."


class Harness:
    """lm_eval with its index of tasks, and the package's own task YAMLs.

    Args:
        include_path: Folder with further task YAMLs.

    Raises:
        ConfigError: If lm_eval is not installed, or the folder does not exist.
    """

    def __init__(self, include_path: str | None = None) -> None:
        folders = [str(_OWN_TASKS)]
        if include_path is not None:
            if not Path(include_path).expanduser().is_dir():
                raise ConfigError(f"include_path {include_path!r} is no folder", "give a folder of task YAMLs.")
            folders.append(str(Path(include_path).expanduser()))
        say("loading lm_eval and its list of tasks ...")
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise ConfigError(f"general tasks need lm_eval, which cannot be imported: {error}", _NO_LM_EVAL) from error
        with quiet():
            self._manager: Any = TaskManager(include_path=folders)

    def known(self) -> dict[str, list[str]]:
        """Return every name with the names that it expands to: a tag to its tasks, any other name to itself."""
        index = self._manager.task_index
        return {
            name: sorted(index[name].tags) if index[name].kind.name == "TAG" else [name]
            for name in self._manager.all_tasks
        }

    def check(self, task: GeneralTask, *, allow_code_execution: bool) -> None:
        """Check before a model is loaded that a task is allowed.

        Raises:
            ConfigError: If it runs the model's code where that is not allowed, or a file is given for a group.
        """
        entry = self._manager.task_index[task.task]
        if task.data is not None and entry.kind.name != "TASK":
            raise ConfigError(
                f"general: {task.task} is a group of tasks, which has no one file", "name one of its tasks."
            )
        if self.settings(task.task).get("unsafe_code") and not allow_code_execution:
            raise code_refused(task.task)

    def settings(self, name: str) -> dict[str, Any]:
        """Return a task's YAML with its includes; functions stay names, so nothing is imported or downloaded."""
        from lm_eval.tasks._yaml_loader import load_yaml

        path = self._manager.task_index[name].yaml_path
        return {} if path is None else dict(load_yaml(path, resolve_func=False))

    def items(self, task: GeneralTask) -> dict[str, int]:
        """Return the number of items of a task, or of each task of a group, that :meth:`run` takes.

        Raises:
            ConfigError: If some items cannot be scored for lack of NLTK's data, so that they have gaps.
        """
        with quiet(), translated(task):
            spec = self._spec(task)
            usable, _ = self._without_missing_data(spec, task)
            leaves = self._manager.load([spec])["tasks"]
            counts = {name: len(leaf.eval_docs) for name, leaf in leaves.items()}
        if task.limit is not None:
            counts = {name: min(count, task.limit) for name, count in counts.items()}
        if usable is not None and {name: len(kept) for name, kept in usable.items()} != counts:
            raise ConfigError(
                f"general task {task.task} has items that need data of NLTK (punkt_tab), which is not on this machine",
                "download it (`python -m nltk.downloader punkt_tab`), or leave the task out.",
            )
        return counts

    def look_ahead(self, task: GeneralTask, max_length: int | None) -> None:
        """Check everything of a task that needs no model: data, packages, functions and templates.

        Args:
            task: Task, as :func:`selfaug.evaluation.suites.chosen` returns it.
            max_length: Longest sequence of the model in tokens; ``None`` where it is not known.

        Raises:
            ConfigError, DataError: If the task cannot be run.
        """
        if task.data is not None:
            check_file(task.task, task.data)
        else:
            offline_where_unreachable()
        with quiet(), translated(task):
            leaves = self._manager.load([self._spec(task)])["tasks"]
            for leaf in leaves.values():
                longest = {**(leaf.config.generation_kwargs or {}), **task.generation}.get("max_gen_toks", 256)
                if leaf.OUTPUT_TYPE == "generate_until" and max_length is not None and longest >= max_length:
                    raise ConfigError(
                        f"general task {task.task} generates up to {longest} tokens, and the model's context ends at "
                        f"{max_length}, so there is no room for a question",
                        f"pass fewer with --max_gen_toks, such as {max(1, max_length // 4)}.",
                    )
                for number, document in enumerate(leaf.eval_docs, start=1):
                    if task.data is None and number > 1:
                        break  # lm_eval's own data fits its templates
                    _lay_out(leaf, document, task, number)

    def run(
        self,
        task: GeneralTask,
        model: PreTrainedModel | str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_args: Mapping[str, Any] | None = None,
        batch_size: int,
        max_length: int | None = None,
        allow_code_execution: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Run one task on one model, and return lm_eval's scores and the values of every item as JSON.

        Args:
            task: Task, as :func:`selfaug.evaluation.suites.chosen` returns it.
            model: Loaded model, or the name of another backend of lm_eval, which loads its own.
            tokenizer: Tokenizer of the run.
            model_args: Arguments of the other backend.
            batch_size: Number of requests in a batch.
            max_length: Longest sequence in tokens; ``None`` for the model's own limit.
            allow_code_execution: Whether code that the model writes may be run.
            progress: Callback for the number of answered requests; called only for a loaded model.

        Raises:
            ConfigError, DataError: If the task's data, an extra package or the model's length does not allow it.
        """
        import lm_eval

        chat = bool(tokenizer.chat_template) if task.chat_template == "auto" else bool(task.chat_template)
        if allow_code_execution:
            os.environ["HF_ALLOW_CODE_EVAL"] = "1"
        with quiet(), translated(task):
            repeatable_language_detection()
            spec = self._spec(task)
            usable, left_out = self._without_missing_data(spec, task)
            kept = usable if task.items is None else {name: list(chosen) for name, chosen in task.items.items()}
            if isinstance(model, str):
                lm: Any = model
            else:
                from lm_eval.models.huggingface import HFLM

                # A copy: lm_eval sets a padding token where there is none.
                lm = (HFLM if progress is None else _counted(progress))(
                    pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, max_length=max_length
                )
            output = lm_eval.simple_evaluate(
                model=lm,
                model_args=None if model_args is None else dict(model_args),
                tasks=[spec],
                task_manager=self._manager,
                num_fewshot=task.num_fewshot,
                batch_size=batch_size,
                limit=task.limit if kept is None else None,
                samples=kept,
                apply_chat_template=chat,
                fewshot_as_multiturn=task.fewshot_as_multiturn and chat,
                gen_kwargs=dict(task.generation) or None,
                log_samples=True,
                bootstrap_iters=100_000,
                confirm_run_unsafe_code=allow_code_execution,
                **SEEDS,
            )
        return {**recorded(output, task.task), "left_out": left_out, "chat_template": chat}

    def _spec(self, task: GeneralTask) -> Any:
        if task.data is None:
            return task.task
        from lm_eval.tasks._yaml_loader import load_yaml

        settings = dict(load_yaml(self._manager.task_index[task.task].yaml_path, resolve_func=True))
        for name in ("tag", "group", "dataset_name", "training_split", "validation_split", "fewshot_split"):
            settings.pop(name, None)
        split = settings.setdefault("test_split", "test")
        # The task's own few-shot examples come from splits that one file does not have.
        if task.num_fewshot:
            raise ConfigError(
                f"general: {task.task} asks for {task.num_fewshot} examples before each question, and {task.data} "
                "holds only the questions",
                "leave the file out, or name the task outside of a suite.",
            )
        return {
            **settings,
            "num_fewshot": 0,
            "dataset_path": "json",
            # The file's hash is a part of the key under which `datasets` keeps what it read.
            "dataset_kwargs": {"data_files": {split: str(task.data)}},
        }

    def _without_missing_data(self, spec: Any, task: GeneralTask) -> tuple[dict[str, list[int]] | None, dict[str, int]]:
        """Return the items to keep by task where NLTK's data is missing (``None`` for all), and the number dropped."""
        if "ifeval" not in task.task:
            return None, {}
        loaded = self._manager.load([spec])["tasks"]
        import nltk

        try:
            nltk.data.find("tokenizers/punkt_tab")
        except LookupError:
            kept: dict[str, list[int]] = {}
            dropped = 0
            for name, leaf in loaded.items():
                documents = list(leaf.eval_docs)
                if task.limit is not None:
                    documents = documents[: task.limit]
                good = [
                    i for i, d in enumerate(documents) if not set(d.get("instruction_id_list", ())) & set(_NEEDS_NLTK)
                ]
                kept[name] = good
                dropped += len(documents) - len(good)
            return kept, {"needs data of NLTK (punkt_tab) that is not on this machine": dropped} if dropped else {}
        return None, {}


def _counted(progress: Progress) -> Any:
    """Return a subclass of lm_eval's class for a loaded model that reports the number of answered requests."""
    from lm_eval.api.model import CacheHook
    from lm_eval.models.huggingface import HFLM

    class Hook(CacheHook):
        """lm_eval's hook for caches, which it calls with each answer."""

        done = 0

        def add_partial(self, *_: Any) -> None:
            self.done += 1
            progress(self.done)

    class Counted(HFLM):
        expected = 0

        def _expect(self, requests: Any) -> None:
            if not self.expected:
                self.set_cache_hook(Hook(None))
            self.expected += len(requests)
            progress.expect(self.expected)

        def loglikelihood(self, requests: Any, *rest: Any, **options: Any) -> Any:
            self._expect(requests)
            return super().loglikelihood(requests, *rest, **options)

        def loglikelihood_rolling(self, requests: Any, *rest: Any, **options: Any) -> Any:
            self._expect(requests)
            return super().loglikelihood_rolling(requests, *rest, **options)

        def generate_until(self, requests: Any, *rest: Any, **options: Any) -> Any:
            self._expect(requests)
            return super().generate_until(requests, *rest, **options)

    return Counted


def _lay_out(leaf: Any, document: Any, task: GeneralTask, number: int) -> None:
    """Check that an item fits the task's templates, by filling them as lm_eval will."""
    try:
        leaf.doc_to_text(document)
        target = leaf.doc_to_target(document)
        if leaf.OUTPUT_TYPE == "multiple_choice":
            choices = leaf.doc_to_choice(document)
            if isinstance(target, int) and not 0 <= target < len(choices):
                raise ValueError(f"the answer is number {target} of {len(choices)} choices")
    except Exception as error:  # a template can raise anything
        if task.data is None:
            raise
        raise DataError(
            f"general task {task.task} cannot use row {number} of {task.data}: {tidy(error)}",
            f"its columns are those of the task's own data set; the row has {', '.join(map(str, document))}.",
        ) from error


def file_facts(task: GeneralTask) -> dict[str, Any] | None:
    """Return path, size and hash of a task's local file, or ``None`` without one."""
    if task.data is None:
        return None
    return {"path": str(task.data), "bytes": task.data.stat().st_size, "hash": file_hash(task.data)}


def backend_args(backend: str, origin: Origin, dtype: str) -> dict[str, dict[str, Any]]:
    """Return the arguments, by side, of an lm_eval backend that loads its own model (vLLM, with the adapter as LoRA).

    Raises:
        ConfigError: If the backend does not support the run's adapter.
    """
    common = {"dtype": dtype, "revision": origin.revision, "trust_remote_code": origin.trust_remote_code}
    tokenizer = {"tokenizer": str(origin.final)}
    base = {"pretrained": origin.base, **common, **tokenizer}
    if not origin.adapter:
        return {"base": base, "tuned": {"pretrained": str(origin.final), **common, **tokenizer}}
    rank = _lora_rank(origin.final)
    if rank is None or not origin.switchable:
        raise ConfigError(
            f"backend {backend} takes plain LoRA adapters, and {origin.final} holds another kind",
            "use --backend hf, or merge the adapter first: `selfaug merge`.",
        )
    # vLLM allocates for a rank of 16 unless told, refuses larger adapters, and takes powers of two from 8 on.
    lora = {"lora_local_path": str(origin.final), "max_lora_rank": max(8, 1 << (rank - 1).bit_length())}
    return {"base": base, "tuned": {**base, **lora}}


def _lora_rank(final: Path) -> int | None:
    """Return the adapter's largest rank, or ``None`` where it has none."""
    path = final / ADAPTER_CONFIG
    if not path.is_file():
        return None
    config = read_json(path, hint="copy the adapter's folder again.")
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    known = [int(rank) for rank in ranks if isinstance(rank, int)]
    return max(known, default=None)
