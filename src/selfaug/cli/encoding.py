"""Makes the trainer's tables of token rows, and reports their lengths to the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from selfaug.cli.data import bad_row_lines, bad_rows_by_reason, bad_rows_warning, leak_lines, open_sources
from selfaug.common.errors import ConfigError, DataError
from selfaug.common.files import missing_path, read_text
from selfaug.common.fingerprint import files_of
from selfaug.common.progress import counting
from selfaug.common.ranks import once_per_machine
from selfaug.common.terminal import say, warn
from selfaug.data.files import count_lines
from selfaug.data.prompts import Renderer
from selfaug.data.stored import Encoding, find_or_make, open_table, write_encoded, write_table
from selfaug.data.tokens import text_ids
from selfaug.data.vocabulary import check_ids, check_padding, check_table
from selfaug.run.model_source import looks_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.cli.data import Source, Sources
    from selfaug.cli.parsing import Settings
    from selfaug.data.record import Item

__all__ = ["check_embeddings", "encoded_tables", "load_tokenizer", "tokenizer_and_renderer"]


def load_tokenizer(name: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model.

    Raises:
        ConfigError: If its files are missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(name), **options)
    except Exception as error:  # the tokenizers library raises plain `Exception` for damaged files
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the tokenizer of {str(name)!r} cannot be loaded: {first}", "check the tokenizer's files."
        ) from error


def tokenizer_and_renderer(settings: Settings) -> tuple[PreTrainedTokenizerBase, Renderer]:
    """Return the model's tokenizer, with EOS token and chat template as configured, and the renderer of the prompts.

    Raises:
        ConfigError: If a file is missing, or a token is not in the vocabulary.
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
        # The template is set already; TRL would load it from a tokenizer, and add that tokenizer's tokens to the model.
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


def encoded_tables(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the trainer's tables, the manifest's entries and the length reports, each by split (``train``, ``eval``).

    Only the first process of each machine reads and encodes files; all processes map the table on disk. Tables of the
    hub in TRL's own formats are returned as they are.

    Raises:
        ConfigError: As :func:`selfaug.cli.data.open_sources`, or if the cache cannot be written.
        DataError: As :func:`selfaug.cli.data.open_sources`, or if a row cannot be used, no row fits, or no row has an
            aligned token though the method aligns.
    """
    opened: list[Sources] = []

    def make() -> dict[str, tuple[Path | None, dict[str, Any]]]:
        sources = open_sources(settings)
        opened.append(sources)
        return _make_tables(sources, settings, tokenizer, renderer)

    made = once_per_machine(make)
    tables: dict[str, Any] = {"train": None, "eval": None}
    for split, (folder, _) in made.items():
        if folder is None and not opened:
            opened.append(open_sources(settings))
        if folder is not None:
            tables[split] = open_table(folder)
        else:
            source = opened[0].train if split == "train" else opened[0].evaluation
            assert source is not None
            tables[split] = source.table
    described = {split: facts["described"] for split, (_, facts) in made.items()}
    return tables, described, {split: facts["report"] for split, (_, facts) in made.items()}


def _make_tables(
    sources: Sources, settings: Settings, tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> dict[str, tuple[Path | None, dict[str, Any]]]:
    """Make the tables, tell the user their facts, and return folder (``None`` for the hub's) and facts by split."""
    made: dict[str, tuple[Path | None, dict[str, Any]]] = {}
    keys = {}
    reported: list[Any] = []
    for split, source in (("train", sources.train), ("eval", sources.evaluation)):
        if source is None:
            continue
        if source.table is not None:
            made[split] = None, {"described": source.described(), "report": None}
            keys[split] = source.described()
            continue
        files = files_of(path for reading in source.readings for path in reading.files if path.is_file())
        keys[split] = {"examples": source.identity(), "files": files}
        folder, facts = _make_table(source, split, files, settings, tokenizer, renderer)
        made[split] = folder, facts
        # Both splits may come from one file, whose notes are the same.
        notes, warnings = ([one for one in facts[kind] if one not in reported] for kind in ("notes", "warnings"))
        reported += [*notes, *warnings]
        for line in (*notes, *facts["lines"]):
            say(line)
        for message, hint in warnings:
            warn(message, hint)
        if split == "train" and settings.training.aligns and not settings.training.align_boundary:
            _require_aligned(source.name, facts["report"], settings)
    if sources.evaluation is not None and not sources.disjoint:
        _, facts = find_or_make({"leaks": keys}, lambda _: {"lines": leak_lines(sources)})
        for line in facts["lines"]:
            say(line)
    return made


def _require_aligned(name: str, report: dict[str, Any] | None, settings: Settings) -> None:
    if report is not None and not report["aligned_tokens"]:
        chosen = settings.training
        asking = f"alpha={chosen.alpha}" if chosen.align_target is None else f"align_target={chosen.align_target}"
        raise DataError(
            f"{name} has no aligned token, and {asking} asks for alignment: every prompt is a single token",
            "train on rows with prompts, or set --alpha 0.",
        )


def _make_table(
    source: Source,
    split: str,
    files: list[dict[str, Any]],
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
) -> tuple[Path, dict[str, Any]]:
    """Make the table of a split, and return its folder and facts.

    Raises:
        DataError: If a row cannot be used, or no row fits.
    """
    training = settings.training
    key: dict[str, Any] = {"split": split, "examples": source.identity(), "files": files}
    if source.is_trl:
        return find_or_make(key | {"trl": True}, lambda folder: _write_trl(folder, source, files))
    encoding = Encoding(
        tokenizer,
        renderer,
        training.max_length,
        training.cut_prompt_left,
        training.on_lost_answer,
        settings.run.on_bad_row,
        # The base rewrites these items when it is loaded.
        as_items=split == "train" and training.changes.rewrite is not None,
    )

    def make(folder: Path) -> dict[str, Any]:
        lines = [count_lines(path) for reading in source.readings for path in reading.files]
        expected = None if None in lines else sum(count for count in lines if count)
        with counting(f"tokens of {split}", expected or None) as progress:
            items = cast("Iterable[Item]", source)
            report = write_encoded(folder, items, encoding, training.dataset_num_proc, progress)
        if not report.kept:
            raise DataError(
                f"none of the {report.rows} rows of {source.name} fits max_length={training.max_length}",
                "raise max_length (up to the model's context), or shorten the rows' questions and answers.",
            )
        facts = _facts(source, files, report.rows)
        facts["report"] = report.as_dict()
        facts["lines"] = [f"{split}: {source.name}", *(f"  {line}" for line in report.lines())]
        facts["warnings"] += [(f"{split}: {message}.", hint) for message, hint in report.warnings()]
        return facts

    return find_or_make(key | encoding.key(), make)


def _write_trl(folder: Path, source: Source, files: list[dict[str, Any]]) -> dict[str, Any]:
    from selfaug.data.tables import trl_table

    with counting("rows read", None) as progress:
        rows = []
        for count, row in enumerate(source, start=1):
            rows.append(cast("dict[str, Any]", row))
            progress(count)
    write_table(folder, trl_table(rows))
    return _facts(source, files, len(rows))


def _facts(source: Source, files: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    """Return the facts of a source for the manifest and the user, after it was read to its end."""
    notes: list[str] = []
    warnings: list[tuple[str, str]] = []
    for reading in source.readings:
        notes += reading.notes
        if reading.problems:
            first, *others = bad_row_lines(reading.problems, reading.count)
            notes += [f"{reading.name}: {first}", *others]
            warning = bad_rows_warning(reading.name, reading.problems, reading.count)
            warnings += [] if warning is None else [warning]
    if source.side is not None:
        notes += source.side.division.lines
    problems = [problem for reading in source.readings for problem in reading.problems]
    described = {
        "name": source.name,
        "format": "+".join(dict.fromkeys(reading.format for reading in source.readings)),
        "rows": rows,
        "bad_rows_left_out": len(problems),
        "bad_rows_by_reason": bad_rows_by_reason(problems),
        "files": files,
    }
    return {"described": described, "report": None, "notes": notes, "lines": [], "warnings": warnings}


def check_embeddings(
    tables: Mapping[str, Any], settings: Settings, tokenizer: PreTrainedTokenizerBase, embeddings: int | None
) -> None:
    """Check that each token of the tables, and the padding token, has an embedding.

    Args:
        tables: Tables of :func:`encoded_tables`.
        settings: Settings of the run.
        tokenizer: Tokenizer of the model.
        embeddings: Number of the model's embeddings; ``None`` if its configuration does not give it.

    Raises:
        ConfigError: If the padding token has no embedding.
        DataError: If a token of a row has no embedding.
    """
    check_padding(embeddings, tokenizer, settings.training.pad_token)
    highest = max(tokenizer.get_vocab().values(), default=0)
    for split, table in tables.items():
        check_table(table, embeddings, tokenizer, f"the {split} data")
        untokenised = hasattr(table, "__len__") and "input_ids" not in table.column_names
        if untokenised and embeddings is not None and highest >= embeddings:
            # TRL tokenises these rows only after the model is loaded.
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
