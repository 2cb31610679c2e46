"""Encodes the examples as the trainer's token rows, and reports their lengths to the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.files import missing_path, read_text
from selfaug.common.progress import counting
from selfaug.common.terminal import say, warn
from selfaug.data.encode import encode
from selfaug.data.prompts import Renderer
from selfaug.data.tokens import text_ids
from selfaug.data.vocabulary import check_ids, check_padding, check_table
from selfaug.run.model_source import looks_local

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

    from selfaug.cli.data import Source, Sources
    from selfaug.cli.parsing import Settings
    from selfaug.data.lost_answers import OnLostAnswer
    from selfaug.data.record import Item

__all__ = ["check_embeddings", "encode_source", "encode_sources", "load_tokenizer", "tokenizer_and_renderer"]


def load_tokenizer(name: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        ConfigError: If its files are missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name), **options)
    except Exception as error:  # The tokenizers library raises plain `Exception` for damaged files.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the tokenizer of {str(name)!r} cannot be loaded: {first}", "check the tokenizer's files."
        ) from error


def tokenizer_and_renderer(settings: Settings) -> tuple[PreTrainedTokenizerBase, Renderer]:
    """The model's tokenizer, with the end-of-sequence token and chat template asked for, and the prompt's renderer.

    Raises:
        ConfigError: If a file is missing or the tokenizer does not know a token.
    """
    training = settings.training
    tokenizer = load_tokenizer(
        str(settings.model.model_name_or_path),
        revision=settings.model.model_revision,
        trust_remote_code=training.trust_remote_code,
    )
    if training.eos_token is not None:
        if training.eos_token not in tokenizer.get_vocab():
            raise ConfigError(
                f"eos_token {training.eos_token!r} is not in the model's vocabulary, so the model could never write it",
                "name a token that the tokenizer has.",
            )
        tokenizer.eos_token = training.eos_token
    if training.chat_template_path is not None:
        tokenizer.chat_template = _chat_template(training.chat_template_path, tokenizer)
        # The template is set already; trl would look for a tokenizer and add its tokens to the model.
        training.chat_template_path = None
    if settings.run.renderer is None:
        prompt = settings.run.prompt if isinstance(settings.run.prompt, dict) else {}
        return tokenizer, Renderer.for_tokenizer(tokenizer, **prompt)
    path = Path(settings.run.renderer).expanduser()
    if not path.exists():
        raise missing_path("renderer", settings.run.renderer, "give the adapter folder of an earlier run.")
    renderer = Renderer.load(path if path.is_dir() else path.parent)
    renderer.check(tokenizer)
    return tokenizer, renderer


def _chat_template(source: str, tokenizer: PreTrainedTokenizerBase) -> str:
    path = Path(source).expanduser()
    if looks_local(source) and not path.exists():
        raise missing_path("chat_template_path", source, "give a Jinja file, or the folder of a tokenizer.")
    if path.is_file():
        return read_text(path, "chat_template_path", error=ConfigError)
    other = load_tokenizer(source)
    if not isinstance(other.chat_template, str):
        raise ConfigError(f"the tokenizer {source!r} has no chat template", "give one that has, or a Jinja file.")
    lacking = sorted(
        str(token) for token in other.added_tokens_decoder.values() if str(token) in other.chat_template
        and str(token) not in tokenizer.get_vocab()
    )  # fmt: skip
    if lacking:
        raise ConfigError(
            f"the chat template of {source!r} writes tokens that the model does not have: {', '.join(lacking[:3])}",
            "choose a template of the model's own tokens, or add them to the model first.",
        )
    return other.chat_template


def encode_sources(
    sources: Sources, settings: Settings, tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tables and length reports by split, ``train`` and ``eval``; see :func:`encode_source`."""
    reports: dict[str, Any] = {}
    tables: dict[str, Any] = {"train": None, "eval": None}
    for split, source in (("train", sources.train), ("eval", sources.evaluation)):
        if source is not None:
            tables[split], reports[split] = encode_source(source, split, settings, tokenizer, renderer)
    return tables, reports


def check_embeddings(
    tables: Mapping[str, Any], settings: Settings, tokenizer: PreTrainedTokenizerBase, embeddings: int | None
) -> None:
    """Every token that the tables and their padding use has an embedding.

    Args:
        tables: Of :func:`encode_sources`.
        settings: Of the run.
        tokenizer: Of the model.
        embeddings: How many the model has; ``None`` where its configuration does not say.

    Raises:
        ConfigError: If the padding token has none.
        DataError: If a token of a row has none.
    """
    check_padding(embeddings, tokenizer, settings.training.pad_token)
    highest = max(tokenizer.get_vocab().values(), default=0)
    for split, table in tables.items():
        check_table(table, embeddings, tokenizer, f"the {split} data")
        untokenised = hasattr(table, "__len__") and "input_ids" not in table.column_names
        if untokenised and embeddings is not None and highest >= embeddings:
            # trl tokenises these rows when the model is loaded.
            texts = (list(_texts(row, tokenizer)) for row in table)
            ids = ([token for text in row for token in text_ids(tokenizer, text)] for row in texts)
            check_ids(ids, embeddings, tokenizer, f"the {split} data")


def _texts(value: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and value and all(isinstance(one, dict) and "role" in one for one in value):
        yield str(tokenizer.apply_chat_template(value, tokenize=False)) if tokenizer.chat_template else ""
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner, tokenizer)


def encode_source(
    source: Source, split: str, settings: Settings, tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> tuple[Dataset | IterableDataset, dict[str, Any] | None]:
    """The table that the trainer gets, and the length report; trl's own formats pass through without one.

    Raises:
        ConfigError: If the method lets the base rewrite the rows, and they are in a format of trl's.
        DataError: If no row fits, or none has an aligned token though the method aligns.
    """
    from datasets import Dataset

    from selfaug.before.generated_rows import refuse_rewriting
    from selfaug.data.tables import trl_table
    from selfaug.training.rows import items_table

    rewrites = split == "train" and settings.training.changes.rewrite is not None
    if rewrites and (source.loaded is None or source.loaded.kind == "trl"):
        raise refuse_rewriting(settings.training.method, source.name)
    if source.loaded is None:
        assert source.table is not None
        return source.table, None
    if source.loaded.kind == "trl":
        return trl_table(cast("list[dict[str, Any]]", source.loaded.items)), None
    training = settings.training
    with counting(f"tokens of {split}", len(source.loaded.items)) as progress:
        encoded = encode(
            cast("list[Item]", source.loaded.items),
            tokenizer,
            renderer,
            max_length=training.max_length,
            cut_prompt_left=training.cut_prompt_left,
            on_lost_answer=cast("OnLostAnswer", training.on_lost_answer),
            on_bad_row=settings.run.on_bad_row,
            progress=progress,
        )
    say(f"{split}: {source.name}")
    for line in encoded.report.lines():
        say(f"  {line}")
    for message, hint in encoded.report.warnings() if encoded.rows else ():
        warn(f"{split}: {message}.", hint)
    if not encoded.rows:
        raise DataError(
            f"none of the {encoded.report.rows} rows of {source.name} fits max_length={training.max_length}",
            "raise max_length (up to the model's context), or shorten the rows' questions and answers.",
        )
    if split == "train" and training.aligns and not training.align_boundary and not encoded.report.aligned_tokens:
        raise DataError(
            f"{source.name} has no aligned token, and alpha={training.alpha} asks for alignment: every prompt is a "
            "single token",
            "train on rows with prompts, or set --alpha 0.",
        )
    if rewrites:  # the trainer needs the words; the base rewrites them when it is loaded
        items = cast("list[Item]", source.loaded.items)
        return items_table([items[place] for place in encoded.places]), encoded.report.as_dict()
    columns = {name: [row[name] for row in encoded.rows] for name in ("input_ids", "labels")}
    return Dataset.from_dict(columns), encoded.report.as_dict()
