"""The parts that `selfaug evaluate` measures, made from its flags with all checks that need no model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.progress import counting
from selfaug.common.terminal import say, warn
from selfaug.data.vocabulary import check_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.cli.evaluate import Measurement
    from selfaug.data.forms import Forms
    from selfaug.data.prompts import Renderer
    from selfaug.evaluation.harness import Harness
    from selfaug.evaluation.judge import Judge
    from selfaug.evaluation.parts import Part
    from selfaug.evaluation.suites import GeneralTask
    from selfaug.run.folder import RunFolder
    from selfaug.run.models import Origin

__all__ = ["all_parts", "planned"]


def all_parts(settings: Measurement, folder: RunFolder, origin: Origin) -> list[Part]:
    """Return the parts in the order in which they are measured: task, texts, general tasks."""
    from selfaug.cli.encoding import load_tokenizer
    from selfaug.data.forms import read_forms

    forms = read_forms(settings.abstentions)
    judge = _judge(settings, folder, forms)
    parts: list[Part] = []
    tokenizer = load_tokenizer(folder.tokenizer, trust_remote_code=origin.trust_remote_code)
    if settings.general:
        # General tasks come first, so that a mistyped name is an error before data is read.
        parts += _general(settings, origin, tokenizer)
    if settings.general_data:
        parts = [*_texts(settings, origin, tokenizer), *parts]
    if not settings.no_task:
        parts = [*_tasks(settings, folder, origin, tokenizer, folder.load_renderer(), judge, forms), *parts]
    return parts


def planned(settings: Measurement, config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return name and group of each part that a run will be measured on, by the part's key, before there is the run.

    Args:
        settings: What is to be measured, the task with it.
        config: Settings that the run will have.

    Raises:
        UserError: If data or texts cannot be read or used, or a task is not known or not allowed.
    """
    from selfaug.evaluation.data import task_data
    from selfaug.evaluation.text import read_texts

    parts = {}
    if settings.general:
        parts = {f"general:{task.task}": (task.task, "general") for task in _tasks_of_lm_eval(settings)[1]}
    for path in settings.general_data:
        read_texts(path)
        parts[f"text:{Path(path).stem}"] = Path(path).stem, "general"
    for one in task_data(settings.data, config, {}, form=settings.format, mapping=settings.map,
                         on_bad_row=settings.on_bad_row):  # fmt: skip
        parts[one.name] = one.name.partition(":")[2] or one.name, "task"
    return parts


def _judge(settings: Measurement, folder: RunFolder, forms: Forms) -> Judge | None:
    if settings.judge_url is None:
        return None
    from selfaug.evaluation.judge import Judge

    store = Path(settings.store).expanduser() if settings.store else folder.evaluation
    return Judge(
        settings.judge_url,
        str(settings.judge_model),
        cache=store / "judge.jsonl",
        api_key=os.environ.get(settings.judge_key_env),
        timeout=settings.judge_timeout,
        retries=settings.judge_retries,
        forms=forms,
    )


def _tasks(
    settings: Measurement,
    folder: RunFolder,
    origin: Origin,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    judge: Judge | None,
    forms: Forms,
) -> list[Part]:
    from selfaug.evaluation.data import shared_with_training, task_data
    from selfaug.evaluation.task import ask
    from selfaug.evaluation.task_part import TaskPart

    config = folder.read_config()
    manifest = folder.read_manifest()
    longest = settings.max_length or config.get("max_length")
    longest = int(longest) if isinstance(longest, int) else None
    if origin.context is not None and settings.max_new_tokens >= origin.context:
        raise ConfigError(
            f"max_new_tokens is {settings.max_new_tokens}, and the model's context ends at {origin.context} tokens, so "
            "there is no room for a prompt",
            "lower --max_new_tokens.",
        )
    if folder.foreign is not None and not settings.data:
        raise ConfigError(
            f"which questions {folder.foreign.name} was not trained on is not known, so there is nothing to measure "
            "its task on",
            "pass --data FILE with such questions, or --no_task to measure only general ability.",
        )
    parts: list[Part] = []
    sets = task_data(
        settings.data,
        config,
        manifest,
        form=settings.format,
        mapping=settings.map,
        on_bad_row=settings.on_bad_row,
        limit=settings.limit,
    )
    if settings.data or not config.get("held_out"):
        for line in shared_with_training(sets, config, manifest):
            say(line)
        if folder.foreign is not None and folder.foreign.trained_on is None:
            say("--trained_on names the training data, so that it can be checked.")
    for data_set in sets:
        with counting(f"prompts of {data_set.name}", len(data_set.items)) as progress:
            prompts = ask(
                data_set.items,
                tokenizer,
                renderer,
                max_length=longest,
                context=origin.context,
                max_new_tokens=settings.max_new_tokens,
                truncate=settings.truncate,
                progress=progress,
            )
        if not prompts.asked:
            raise DataError(
                f"none of the {len(data_set.items)} rows of {data_set.described['name']} can be asked: "
                f"{'; '.join(f'{count}: {reason}' for reason, count in prompts.left_out.items())}",
                "raise --max_length or lower --max_new_tokens.",
            )
        check_ids(
            ([*one.prompt_ids, *one.response_ids] for one in prompts.asked),
            origin.embeddings,
            tokenizer,
            str(data_set.described["name"]),
        )
        if prompts.answers_lost:
            many = len(prompts.asked)
            warn(
                f"{data_set.name}: {prompts.answers_lost} of {many} questions "
                f"({100 * prompts.answers_lost / many:.0f} %) have their answer only in documents that do not fit, and "
                "are asked all the same: an answer is right by luck there, an abstention counts as none.",
                "raise --max_length, or lower --max_new_tokens; answers_lost in results.json counts them.",
            )
        parts.append(
            TaskPart(
                data_set.name,
                prompts,
                data_set.described,
                data_set.bad_rows,
                tokenizer,
                renderer,
                settings.max_new_tokens,
                settings.batch_size,
                judge,
                forms,
            )
        )
    return parts


def _texts(settings: Measurement, origin: Origin, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    from selfaug.common.fingerprint import files_of
    from selfaug.evaluation.general_part import TextPart
    from selfaug.evaluation.text import read_texts, windows

    parts: dict[str, Part] = {}
    for path in settings.general_data:
        texts = read_texts(path)[: settings.general_limit]
        pieces = windows(texts, tokenizer, origin.context)
        check_ids((piece.ids for piece in pieces), origin.embeddings, tokenizer, path)
        if not pieces:
            raise DataError(f"general_data {path!r} has no text of two tokens", "give longer texts.")
        name = f"text:{Path(path).stem}"
        if name in parts:
            raise ConfigError(f"general_data names two files called {Path(path).stem!r}", "rename one of them.")
        data = {"files": files_of([Path(path).expanduser()]), "rows": len(texts)}
        parts[name] = TextPart(name, texts, pieces, data, settings.batch_size)
    return list(parts.values())


def _general(settings: Measurement, origin: Origin, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    from selfaug.evaluation.general_part import GeneralPart
    from selfaug.evaluation.harness import backend_args

    harness, tasks = _tasks_of_lm_eval(settings)
    return [
        GeneralPart(
            f"general:{task.task}",
            task,
            harness,
            tokenizer,
            settings.batch_size,
            origin.context,
            settings.allow_code_execution,
            settings.backend,
            None if settings.backend == "hf" else backend_args(settings.backend, origin, settings.dtype),
        )
        for task in tasks
    ]


def _tasks_of_lm_eval(settings: Measurement) -> tuple[Harness, list[GeneralTask]]:
    from selfaug.evaluation.harness import Harness
    from selfaug.evaluation.suites import chosen

    harness = Harness(settings.include_path)
    tasks = chosen(settings.general, harness.known(), limit=settings.general_limit, max_gen_toks=settings.max_gen_toks)
    for task in tasks:
        harness.check(task, allow_code_execution=settings.allow_code_execution)
    return harness, tasks
