"""`selfaug prepare`: check and convert data, retrieve documents, hold out a split, and tell how long the rows are."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from selfaug import __version__
from selfaug.cli.config import Call, Command
from selfaug.cli.data import bad_row_lines, bad_rows_by_reason, bad_rows_warning
from selfaug.cli.options import OnBadRow, bad_rows, data_format, field_map
from selfaug.cli.outputs import check_free, written_whole
from selfaug.common.endpoint import Endpoint
from selfaug.common.errors import ConfigError, DataError
from selfaug.common.fingerprint import files_of
from selfaug.common.options import REQUIRED, option
from selfaug.common.progress import counting
from selfaug.common.terminal import emit, say, warn
from selfaug.data.files import has_split
from selfaug.data.folders import HELD_OUT
from selfaug.data.preparation import Prepared, Retrieval, prepare
from selfaug.data.read import Loaded, read_rows
from selfaug.data.reasons import WARN_ABOVE_SHARE
from selfaug.data.record import Record
from selfaug.data.split import titles_of
from selfaug.lab import shipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.dense import Embedder
    from selfaug.data.lengths import LengthReport
    from selfaug.data.record import Item
    from selfaug.data.split import Example

__all__ = ["COMMAND", "run"]

FILES = ("train.jsonl", "held_out.jsonl", "report.json")


@dataclass
class Settings:
    """Options of `selfaug prepare`."""

    input: str = option(
        REQUIRED,
        "A data file, a folder of such, or a data set name of the hub (org/name).",
        group="Data",
        positional=True,
    )
    format: str = data_format()
    map: list[str] | None = field_map()
    split: str = option("train", "Split of a folder, a saved data set or a data set of the hub.", metavar="NAME")
    check: bool = option(
        False, "Only check the data: write nothing, exit with 2 where rows are bad.", group="Bad rows and lengths"
    )
    on_bad_row: OnBadRow = bad_rows()
    model_name_or_path: str | None = option(None, "Model whose tokenizer measures the rows' lengths.", metavar="MODEL")
    max_length: int | None = option(None, "Tokens that prompt and response may have together.")
    held_out: float = option(
        0.1,
        "Part of the examples to hold out, by document; 0 for none, and with --check.",
        group="Held-out split",
        metavar="FRACTION",
    )
    group_by: list[str] = option(
        [],
        "Keep examples with an equal value of these on one side of the split, besides those that share a document: "
        "'title' for the titles of documents, or a field of the rows (a.b for a field inside another).",
        metavar="FIELD",
    )
    against: str | None = option(
        None,
        "Other data, such as a test set: count the rows, documents and questions that INPUT shares with it.",
        metavar="DATA",
    )
    on_shared_row: Literal["keep", "skip"] = option(
        "keep",
        "What a row of INPUT that shares a document or question with --against does: 'keep' only counts it, 'skip' "
        "leaves it out.",
    )
    seed: int = option(0, "Seed of the split and of the order of documents.")
    corpus: str | None = option(
        None,
        "File or folder of passages to retrieve documents from (BM25).",
        group="Documents from a corpus",
        metavar="CORPUS",
    )
    retriever: str = option(
        "bm25",
        "What ranks the passages: 'bm25', or a model of sentence-transformers (folder or hub name).",
        metavar="MODEL",
    )
    retriever_url: str | None = option(
        None, "OpenAI-compatible endpoint of embeddings that ranks them instead.", metavar="URL"
    )
    retriever_model: str | None = option(None, "Name of the embedding model at the endpoint.", metavar="NAME")
    retriever_key_env: str = option("OPENAI_API_KEY", "Environment variable with the API key.", metavar="NAME")
    hybrid: bool = option(False, "Merge the retriever's ranking with BM25's, by reciprocal ranks.")
    top_k: int = option(5, "Passages for a record without documents.", metavar="K")
    distractors: int = option(0, "Passages without an accepted answer to add to each record.")
    dataset_num_proc: int = option(1, "Processes that index and search the corpus.", metavar="N")
    output_dir: str | None = option(
        None, "Folder for train.jsonl, held_out.jsonl and report.json.", group="Output", metavar="OUT"
    )
    overwrite_output_dir: bool = option(False, "Replace the files that an earlier call wrote to OUT.")
    json: bool = option(False, "Print the report as JSON.")


COMMAND = Command(
    "prepare",
    Settings,
    __doc__ or "",
    (
        "selfaug prepare questions.jsonl --output_dir data/mine --corpus docs/ --held_out 0.1",
        "selfaug prepare rows.csv --check --map question=query documents=passages answer=response",
    ),
)


def run(call: Call[Settings]) -> int:
    """Read, split, retrieve, measure and write, and return the exit code. The folder appears whole or not at all."""
    settings = call.settings
    _check(call)
    out = None if settings.output_dir is None else Path(settings.output_dir).expanduser()
    if out is not None and not settings.check:
        check_free(out, ours=FILES, overwrite=settings.overwrite_output_dir)
    # Wrong paths of model and corpus are reported before the data is read.
    tokenizer = None if settings.model_name_or_path is None else _tokenizer(settings.model_name_or_path)
    retrieval = None
    if settings.corpus is not None:
        retrieval = _retrieval(settings, settings.corpus, _embedder(settings))
    with counting("rows read", None) as progress:
        loaded = read_rows(
            settings.input,
            format=settings.format,
            on_bad_row="skip" if settings.check else settings.on_bad_row,
            needs_documents=retrieval is None,
            split=settings.split,
            mapping=settings.map,
            fields=settings.group_by,
            progress=progress,
        )
    against = None if settings.against is None else _read_against(settings, settings.against)
    if loaded.kind == "trl" and retrieval is not None:
        raise ConfigError(
            f"corpus is set, and {settings.input} holds rows in TRL's own format, which have no question to search for",
            "leave --corpus out, or give records with a question.",
        )
    if loaded.kind == "trl" and tokenizer is not None:
        raise ConfigError(
            f"model_name_or_path measures records and conversations, and {settings.input} holds TRL's own rows",
            "leave it out: TRL makes the tokens of its own formats.",
        )
    if retrieval is not None:
        _look_ahead(retrieval, [item for item in loaded.items if isinstance(item, Record)])
    with counting("documents retrieved", len(loaded.items) if retrieval else 0) as done:
        parts = prepare(
            loaded.items,
            held_out=settings.held_out,
            seed=settings.seed,
            retrieval=retrieval,
            on_bad_row=settings.on_bad_row,
            progress=done,
            keys=_keys(settings, loaded),
            against=None if against is None else against.items,
            on_shared_row=settings.on_shared_row,
        )
    report, lines = _report(settings, loaded, parts, tokenizer)
    if settings.check:
        _show(settings, report, lines)
        if loaded.problems and settings.on_bad_row == "error":
            raise DataError(
                f"{settings.input}: {len(loaded.problems)} of {len(loaded.items) + len(loaded.problems)} rows are bad;"
                f" the first: {loaded.problems[0].message}",
                loaded.problems[0].hint,
            )
        return 0
    assert out is not None
    with written_whole(out) as folder:
        _write_rows(folder / "train.jsonl", parts.train)
        if settings.held_out:
            _write_rows(folder / "held_out.jsonl", parts.held_out)
        (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    _show(settings, report, lines)
    say(f"written to {out}")
    return 0


def _check(call: Call[Settings]) -> None:
    """Refuse options that contradict each other, and fill in those that depend on others."""
    settings = call.settings
    if settings.model_name_or_path is not None:
        settings.model_name_or_path = shipped.resolve(settings.model_name_or_path)
    if settings.check and "held_out" not in call.given:
        settings.held_out = 0.0  # data that cannot be split is not bad data
    if settings.output_dir is None and not settings.check:
        raise ConfigError("no output_dir is given", "pass --output_dir OUT, or --check to only check the data.")
    if settings.corpus is None and (settings.distractors or "top_k" in call.given):
        raise ConfigError(
            "top_k and distractors are numbers of passages from a corpus, and no corpus is given",
            "pass --corpus, or leave them out.",
        )
    _check_retriever(call)
    if settings.dataset_num_proc < 1:
        raise ConfigError(
            f"dataset_num_proc={settings.dataset_num_proc}: at least one process has to search", "set it to 1 or more."
        )
    if settings.on_shared_row != "keep" and settings.against is None:
        raise ConfigError(
            "on_shared_row says what becomes of rows that are shared with other data, and no other data is given",
            "pass --against DATA, or leave it out.",
        )
    if settings.group_by and not settings.held_out:
        raise ConfigError(
            "group_by says which examples stay together when some are held out, and held_out is 0",
            "pass for example --held_out 0.1, or leave --group_by out.",
        )
    if settings.max_length is not None and (settings.model_name_or_path is None or settings.max_length < 1):
        raise ConfigError(
            f"max_length={settings.max_length} needs to be at least 1, and a model whose tokens are counted",
            "pass --model_name_or_path and a max_length above 0.",
        )


def _check_retriever(call: Call[Settings]) -> None:
    settings = call.settings
    dense = settings.retriever_url is not None or settings.retriever != "bm25"
    if settings.corpus is None and (dense or settings.hybrid):
        raise ConfigError(
            "retriever and hybrid say how passages of a corpus are ranked, and no corpus is given",
            "pass --corpus, or leave them out.",
        )
    if settings.hybrid and not dense:
        raise ConfigError(
            "hybrid merges BM25's ranking with that of an embedding model, and none is named",
            "name one with --retriever or --retriever_url, or leave --hybrid out.",
        )
    if (settings.retriever_url is None) != (settings.retriever_model is None):
        raise ConfigError(
            "retriever_url and retriever_model are given together: the address, and the name of the model there",
            "pass both, or only --retriever.",
        )
    if settings.retriever_url is not None and "retriever" in call.given:
        raise ConfigError("retriever and retriever_url both name what ranks the passages", "leave one of them out.")


def _embedder(settings: Settings) -> Embedder | None:
    from selfaug.data.dense import LocalEmbedder, ServedEmbedder

    if settings.retriever_url is not None:
        key = os.environ.get(settings.retriever_key_env)
        endpoint = Endpoint(settings.retriever_url, key, role="embedding model", settings="retriever")
        return ServedEmbedder(endpoint, str(settings.retriever_model))
    return None if settings.retriever == "bm25" else LocalEmbedder(settings.retriever)


def _retrieval(settings: Settings, path: str, embedder: Embedder | None) -> Retrieval:
    from selfaug.data.corpus import Corpus
    from selfaug.data.dense import DenseCorpus

    say(f"reading and indexing the corpus {path} ...")
    with counting("passages indexed", None) as progress:
        corpus = Corpus.load(path, settings.dataset_num_proc, progress)
    say(f"{len(corpus.passages)} passages; their index is kept in {corpus.folder}")
    if embedder is None:
        return Retrieval(corpus, settings.top_k, settings.distractors, settings.dataset_num_proc)
    with counting("passages embedded", len(corpus.passages)) as progress:
        dense = DenseCorpus.of(corpus, embedder, settings.hybrid, progress)
    return Retrieval(dense, settings.top_k, settings.distractors)


def _look_ahead(retrieval: Retrieval, records: Sequence[Record]) -> None:
    from selfaug.data.dense import DenseCorpus

    if isinstance(retrieval.corpus, DenseCorpus):
        with counting("questions embedded", len(records)) as progress:
            retrieval.corpus.look_ahead(records, progress)


def _read_against(settings: Settings, path: str) -> Loaded:
    """Read the data with which the examples should share nothing; of a folder the split for evaluation.

    It is read in the format of INPUT, else in a detected one, since it may be a file that this command wrote.
    """
    splits = HELD_OUT if has_split(Path(path).expanduser(), HELD_OUT) else ("test", *HELD_OUT, "train")

    def read(form: str, mapping: list[str] | dict[str, str] | None) -> Loaded:
        return read_rows(path, format=form, mapping=mapping, on_bad_row="skip", needs_documents=False, split=splits)

    try:
        loaded = read(settings.format, settings.map)
    except DataError:
        if settings.format == "auto" and not settings.map:
            raise
        loaded = read("auto", None)
    if loaded.problems:
        say(f"{loaded.name}: {len(loaded.problems)} bad rows are not compared; the first: {loaded.problems[0].message}")
    return loaded


def _keys(settings: Settings, loaded: Loaded) -> list[set[str]]:
    """Return, for each example, the texts besides documents that keep it together with others.

    Raises:
        DataError: If no example has a value of a field to group by.
    """
    keys: list[set[str]] = [set() for _ in loaded.items]
    for place, name in enumerate(settings.group_by):
        without = 0
        for key, item, values in zip(keys, loaded.items, loaded.values, strict=True):
            texts = [] if values[place] is None else [json.dumps(values[place], sort_keys=True, default=str)]
            texts += titles_of(item) if name == "title" else []
            key.update(f"{name}: {text}" for text in texts)
            without += not texts
        if without == len(keys):
            raise DataError(
                f"group_by={name!r}: none of the {len(keys)} examples has "
                + ("a document with a title" if name == "title" else "such a field"),
                "name a field that the rows have, or leave --group_by out.",
            )
        if without:
            say(f"group_by: {without} of {len(keys)} examples have no {name}; their documents alone group them")
    return keys if settings.group_by else []


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    from selfaug.cli.encoding import load_tokenizer
    from selfaug.common.files import missing_path
    from selfaug.run.model_source import looks_local

    if looks_local(name) and not Path(name).expanduser().exists():
        raise missing_path("model_name_or_path", name, "check the path; a hub name has the form owner/name.")
    return load_tokenizer(Path(name).expanduser() if looks_local(name) else name)


def _report(
    settings: Settings, loaded: Loaded, parts: Prepared, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the report as JSON, and as lines for the user."""
    problems = [problem.message for problem in loaded.problems]
    files = [file for file in loaded.files if file.is_file()]
    report: dict[str, Any] = {
        "selfaug": __version__,
        "settings": asdict(settings),
        "format": loaded.format,
        "kind": loaded.kind,
        "files": files_of(files),
        "rows": len(loaded.items) + len(problems),
        "bad_rows": {
            "count": len(problems),
            "by_reason": bad_rows_by_reason(loaded.problems),
            "problems": problems,
        },
        **parts.as_dict(),
    }
    if (warning := bad_rows_warning(str(settings.input), loaded.problems, len(loaded.items))) is not None:
        warn(*warning)
    lines = [f"{settings.input}: {len(loaded.items)} examples in the format {loaded.format}"]
    lines += bad_row_lines(loaded.problems, len(loaded.items))
    if parts.with_answer is not None:
        records = len(parts.train) + len(parts.held_out)
        lines.append(f"{parts.with_answer} of {records} examples have an accepted answer in their documents")
        if parts.without_documents:
            lacking = f"{len(parts.without_documents)} records left out: the corpus has no passage for them"
            lines.append(lacking)
            if len(parts.without_documents) > WARN_ABOVE_SHARE * (records + len(parts.without_documents)):
                warn(f"{lacking}, and {records} are left.", "use a larger corpus, or one that speaks of what is asked.")
    if parts.leaks is not None:
        lines.append(f"train {len(parts.train)}, held out {len(parts.held_out)} (of {parts.groups} groups)")
        lines += parts.leaks.lines()
    if parts.against is not None:
        lines.append(f"{settings.against}, against the {len(parts.train) + len(parts.held_out)} examples kept:")
        lines += [f"  {line}" for line in parts.against.lines()]
        if settings.on_shared_row == "skip":
            lines.append(f"  {parts.left_out_shared} examples left out that share a document or question with it")
        elif parts.against:
            sharing = len(parts.against.training_places)
            lines.append(f"  {sharing} examples share these with it; --on_shared_row skip leaves them out")
    if tokenizer is not None:
        report["lengths"] = {}
        for name, part in (("train", parts.train), ("held_out", parts.held_out)):
            if part:
                lengths = _lengths(settings, part, tokenizer)
                report["lengths"][name], (first, *others) = lengths.as_dict(), lengths.lines()
                lines += [f"{name}: {first}", *(f"  {line}" for line in others)]
                for message, hint in lengths.warnings():
                    warn(f"{name}: {message}.", hint)
    return report, lines


def _lengths(settings: Settings, part: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> LengthReport:
    from selfaug.data.encode import encode
    from selfaug.data.prompts import Renderer

    with counting("rows measured", len(part)) as progress:
        encoded = encode(
            cast("Sequence[Item]", part),
            tokenizer,
            Renderer.for_tokenizer(tokenizer),
            max_length=settings.max_length,
            on_bad_row="skip" if settings.check or settings.on_bad_row == "skip" else "error",
            progress=progress,
        )
    return encoded.report


def _show(settings: Settings, report: dict[str, Any], lines: Sequence[str]) -> None:
    if settings.json:
        emit(json.dumps(report, ensure_ascii=False))
        return
    for line in lines:
        emit(line)


def _write_rows(path: Path, part: Sequence[Example]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for example in part:
            row = example if isinstance(example, dict) else example.to_row()
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
