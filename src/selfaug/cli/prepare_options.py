"""The options of `selfaug prepare`, and which are in force."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from selfaug.cli import verb_options
from selfaug.common.errors import ConfigError
from selfaug.lab import shipped

__all__ = ["Settings", "add_flags", "resolve"]


@dataclass
class Settings:
    """What `selfaug prepare` was asked to do; the flags' help says what each means."""

    input: str | None = None
    output_dir: str | None = None
    format: str = "auto"
    map: list[str] | None = None
    split: str = "train"
    on_bad_row: str = "error"
    corpus: str | None = None
    top_k: int = 5
    distractors: int = 0
    held_out: float = 0.1
    group_by: list[str] = field(default_factory=list)
    against: str | None = None
    on_shared_row: str = "keep"
    seed: int = 0
    model_name_or_path: str | None = None
    max_length: int | None = None
    check: bool = False
    json: bool = False
    overwrite_output_dir: bool = False


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `selfaug prepare`; what is not typed leaves no trace in the result."""
    true_or_false: dict[str, Any] = {"type": verb_options.switch, "nargs": "?", "const": True, "metavar": "true|false"}
    default = Settings()
    parser.add_argument(
        "input",
        nargs="?",
        default=argparse.SUPPRESS,
        metavar="INPUT",
        help="a data file, a folder of such, or a data set name of the hub (org/name)",
    )
    add = verb_options.adder(parser)
    add("output_dir", "folder for train.jsonl, held_out.jsonl and report.json", metavar="OUT")
    add("format", "format of the data; 'auto' looks at the first rows", metavar="NAME")
    add("map", verb_options.MAP_HELP, nargs="+", metavar="FIELD=PATH")
    add(
        "split",
        f"split of a folder, a saved data set or a data set of the hub (default: {default.split})",
        metavar="NAME",
    )
    add(
        "on_bad_row",
        "what a row that cannot be used does: 'error' stops, 'skip' leaves it out, counted and listed (default: error)",
        choices=["error", "skip"],
    )
    add("corpus", "file or folder of passages to retrieve documents from (BM25)", metavar="CORPUS")
    add("top_k", f"passages for a record without documents (default: {default.top_k})", type=int, metavar="K")
    add("distractors", "passages without an accepted answer to add to each record (default: 0)", type=int, metavar="N")
    add(
        "held_out",
        f"part of the examples to hold out, by document; 0 for none (default: {default.held_out})",
        type=float,
        metavar="FRACTION",
    )
    add(
        "group_by",
        "keep examples with an equal value of these on one side of the split, besides those that share a document:"
        " 'title' for the titles of documents, or a field of the rows (a.b for a field inside another)",
        nargs="+",
        metavar="FIELD",
    )
    add("against", "other data, such as a test set: count the rows, documents and questions that INPUT shares with it",
        metavar="DATA")  # fmt: skip
    add(
        "on_shared_row",
        "what a row of INPUT that shares a document or question with --against does: 'keep' only counts it, 'skip'"
        " leaves it out (default: keep)",
        choices=["keep", "skip"],
    )
    add("seed", "seed of the split and of the order of documents (default: 0)", type=int, metavar="N")
    add("model_name_or_path", "model whose tokenizer measures the rows' lengths", metavar="MODEL")
    add("max_length", "tokens that prompt and response may have together", type=int, metavar="L")
    add("check", "only check the data: write nothing, exit with 2 where rows are bad", **true_or_false)
    add("json", "print the report as JSON", **true_or_false)
    add("overwrite_output_dir", "replace the files that an earlier call wrote to OUT", **true_or_false)


def resolve(args: argparse.Namespace) -> Settings:
    """The options in force: flags, then the file of settings, then defaults.

    Raises:
        ConfigError: If the file has an unknown key or a wrong value, something is missing, or options contradict.
    """
    parser = argparse.ArgumentParser()
    add_flags(parser)
    given = verb_options.given(Settings, "prepare", parser, args)
    settings = Settings(**given)
    if settings.model_name_or_path is not None:
        settings.model_name_or_path = shipped.resolve(settings.model_name_or_path)
    if settings.check and "held_out" not in given:
        settings.held_out = 0.0  # Data that cannot be split is not bad data.
    if settings.input is None:
        raise ConfigError("no data is given", "name a file, a folder or a data set: selfaug prepare INPUT ...")
    if settings.output_dir is None and not settings.check:
        raise ConfigError("no output_dir is given", "pass --output_dir OUT, or --check to only check the data.")
    if settings.corpus is None and (settings.distractors or "top_k" in given):
        raise ConfigError(
            "top_k and distractors are numbers of passages from a corpus, and no corpus is given",
            "pass --corpus, or leave them out.",
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
    return settings
