"""Training rows that the base generates before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets

from selfaug.common.endpoint import Endpoint
from selfaug.common.errors import ConfigError
from selfaug.common.fingerprint import tokenizer_hash
from selfaug.common.terminal import is_main, say
from selfaug.data.encode import encode
from selfaug.generation.local import LocalModel
from selfaug.generation.served import ServedModel
from selfaug.generation.store import FOLDER, Store
from selfaug.generation.writer import Source, Writer
from selfaug.methods.base import Compose

if TYPE_CHECKING:
    from selfaug.before.context import BeforeTraining

__all__ = ["check_generation", "composed", "refuse_rewriting", "rows_with_generated", "writer_of"]


def check_generation(before: BeforeTraining) -> None:
    """Check before the first step that the run allows the method's generation.

    Raises:
        ConfigError: If it does not.
    """
    method, config = before.method, before.config
    changes = method.changes(config)
    if not changes.generates:
        return
    for check in changes.check_prompts:
        check(before.tokenizer, before.renderer)
    if changes.rewrite is not None and not before.takes_items:
        raise refuse_rewriting(method.name, "the training data set")
    if not isinstance(before.rows, Dataset):
        raise ConfigError(
            f"method={method.name!r} writes rows before training, and the data set is a stream or was not prepared "
            "here.",
            "give a data set of known length (--dataset_streaming false, without skip_prepare_dataset).",
        )


def refuse_rewriting(method: str, name: str) -> ConfigError:
    """Return the error for rows without texts to rewrite."""
    return ConfigError(
        f"method={method!r} lets the base rewrite answers, and {name} has rows in a format of trl's own, a stream, or "
        "token ids: what is the question and what its answer is not told.",
        "give records or conversations (`messages`); `selfaug prepare` makes records of other formats.",
    )


def rows_with_generated(before: BeforeTraining, prepare: Callable[[Any], Dataset]) -> Dataset:
    """Return the training rows after the method's rewriting, followed by the conversations that it composes.

    Args:
        before: Run before its first step.
        prepare: Function that tokenises the training rows again, after a change of their records and conversations.
    """
    config, changes = before.config, before.method.changes(before.config)
    if is_main():
        say("the base model writes ..." if config.generation_url is None else f"{config.generation_model} writes ...")
    writer = writer_of(before)
    rows = before.rows
    with before.autocast():
        if (rewrite := changes.rewrite) is not None:
            rows = prepare(lambda items: rewrite(items, writer))
        if changes.compose is not None:
            rows = composed(rows, changes.compose, writer)
    return rows


def composed(rows: Dataset, compose: Compose, writer: Writer) -> Dataset:
    """Return ``rows`` followed by exactly ``round(ratio · rows)`` rows that the base wrote."""
    count = round(compose.ratio * len(rows))
    kept = rows.select_columns(["input_ids", "labels"])
    written: Any = compose.write(writer, count) if count else []
    if written and not isinstance(written[0], dict):
        written = encode(written, writer.tokenizer, writer.renderer, max_length=writer.max_length).rows
    assert len(written) == count, "the writer checked that each row fits"
    return concatenate_datasets([kept, Dataset.from_list(written, features=kept.features)]) if count else kept


def writer_of(before: BeforeTraining) -> Writer:
    """Return the run's writer, on the endpoint that the settings name or the loaded model with its adapter off."""
    config, tokenizer, renderer = before.config, before.tokenizer, before.renderer
    made_by: dict[str, Any] = {
        "template": renderer.chat_template_sha256,
        "template_variables": dict(renderer.chat_template_kwargs),
        "tokenizer": tokenizer_hash(tokenizer),
    }
    source: Source
    if config.generation_url is not None:
        assert config.generation_model is not None
        endpoint = Endpoint(
            config.generation_url,
            os.environ.get(config.generation_key_env),
            timeout=600.0,
            concurrency=config.generation_batch_size,
        )
        source = ServedModel(endpoint, config.generation_model, renderer.chat_template_kwargs)
        made_by["served"] = config.generation_model
    else:
        source = LocalModel(before.model, tokenizer, renderer, config.generation_batch_size)
        made_by |= before.base_facts()
    store = Store(before.folder / FOLDER, before.rank)
    before.accelerator.wait_for_everyone()  # no rank writes while another still reads
    return Writer(
        source,
        store,
        made_by,
        tokenizer=tokenizer,
        renderer=renderer,
        max_length=before.max_length,
        cut_prompt_left=config.cut_prompt_left,
        length=config.generation_length,
        seed=config.seed,
        rank=before.rank,
        ranks=before.ranks,
    )
