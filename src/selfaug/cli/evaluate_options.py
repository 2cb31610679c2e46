"""The options of `selfaug evaluate`, and which are in force."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import dataclass, field
from typing import Any

from selfaug.cli import verb_options
from selfaug.common.errors import ConfigError
from selfaug.lab import shipped

__all__ = ["Settings", "add_flags", "resolve"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
BACKENDS = ("hf", "vllm")


@dataclass
class Settings:
    """What `selfaug evaluate` was asked to do; the flags' help says what each means."""

    run: str | None = None
    data: list[str] = field(default_factory=list)
    format: str = "auto"
    map: list[str] | None = None
    on_bad_row: str = "error"
    limit: int | None = None
    no_task: bool = False
    max_new_tokens: int = 128
    max_length: int | None = None
    abstentions: str | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    judge_key_env: str = "OPENAI_API_KEY"
    judge_timeout: float = 60.0
    judge_retries: int = 4
    general: list[str] = field(default_factory=list)
    general_data: list[str] = field(default_factory=list)
    general_limit: int | None = None
    max_gen_toks: int | None = None
    include_path: str | None = None
    allow_code_execution: bool = False
    backend: str = "hf"
    batch_size: int = 8
    dtype: str = "auto"
    base: str | None = None
    seed: int = 0
    store: str | None = None
    fresh: bool = False
    json: bool = False


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `selfaug evaluate`; what is not typed leaves no trace in the result."""
    true_or_false: dict[str, Any] = {"type": verb_options.switch, "nargs": "?", "const": True, "metavar": "true|false"}
    parser.add_argument(
        "run", nargs="?", default=argparse.SUPPRESS, metavar="RUN", help="the --output_dir of a finished training"
    )
    add = verb_options.adder(parser)
    add("data", "records to answer (default: what the run held out or evaluated on)", nargs="+", metavar="PATH")
    add("format", "format of --data; 'auto' looks at the first rows", metavar="NAME")
    add("map", verb_options.MAP_HELP, nargs="+", metavar="FIELD=PATH")
    add("on_bad_row", "what a row that cannot be used does (default: error)", choices=["error", "skip"])
    add("limit", "only the first N records of each data set", type=int, metavar="N")
    add("no_task", "measure general ability alone", **true_or_false)
    add("max_new_tokens", "longest answer in tokens (default: 128)", type=int, metavar="N")
    add("max_length", "tokens of prompt and accepted answer (default: as in training)", type=int, metavar="N")
    add("abstentions", "YAML file of further ways to say that there is no answer", metavar="FILE")
    add("judge_url", "OpenAI-compatible endpoint that gives the CRAG verdicts, instead of rules", metavar="URL")
    add("judge_model", "the judge's name there", metavar="NAME")
    add("judge_key_env", "environment variable with its API key (default: OPENAI_API_KEY)", metavar="NAME")
    add("judge_timeout", "seconds for one verdict (default: 60)", type=float, metavar="S")
    add("judge_retries", "further tries of one verdict (default: 4)", type=int, metavar="N")
    add("general", "paper, quick, or any task of lm_eval; NAME=FILE takes its data from a file", nargs="+",
        metavar="NAME")  # fmt: skip
    add("general_data", "plain texts (.txt, .json, .jsonl) for nats per token", nargs="+", metavar="FILE")
    add("general_limit", "only the first N items of each general task, instead of its own limit", type=int, metavar="N")
    add("max_gen_toks", "longest generated answer of general tasks, instead of their own", type=int, metavar="N")
    add("include_path", "folder with further task YAMLs of lm_eval", metavar="DIR")
    add("allow_code_execution", "let tasks run code that the model writes; only in a sandbox", **true_or_false)
    add("backend", "what runs general tasks (default: hf, the model that is loaded anyway)", choices=BACKENDS)
    add("batch_size", "prompts at a time (default: 8)", type=int, metavar="N")
    add("dtype", "number format of the weights (default: auto, the base's own)", choices=DTYPES)
    add("base", "where the base model lies now, if not where the run found it", metavar="MODEL")
    add("seed", "of the bootstrap (default: 0)", type=int, metavar="N")
    add("store", "folder of finished parts; runs with one base can share it (default: RUN/evaluation)", metavar="DIR")
    add("fresh", "repeat parts that are finished", **true_or_false)
    add("json", "print the results as JSON instead of a table", **true_or_false)


def resolve(args: argparse.Namespace) -> Settings:
    """The options in force: flags, then the file of settings, then defaults.

    Raises:
        ConfigError: If the file has an unknown key or a wrong value, something is missing, or options contradict.
    """
    parser = argparse.ArgumentParser()
    add_flags(parser)
    given = verb_options.given(Settings, "evaluate", parser, args)
    settings = Settings(**given)
    if settings.base is not None:
        settings.base = shipped.resolve(settings.base)
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    if settings.run is None:
        raise ConfigError("no run is given", "name the --output_dir of a training: selfaug evaluate RUN ...")
    for name in ("max_new_tokens", "max_length", "limit", "general_limit", "max_gen_toks", "batch_size"):
        number = getattr(settings, name)
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}, and it counts something", "give 1 or more.")
    if settings.seed < 0:
        raise ConfigError(f"seed is {settings.seed}, and the bootstrap takes none below 0", "give 0 or more.")
    if not settings.judge_timeout > 0 or settings.judge_retries < 0:
        raise ConfigError("judge_timeout and judge_retries count seconds and tries", "give more than 0, and 0 or more.")
    if (settings.judge_url is None) != (settings.judge_model is None):
        raise ConfigError(
            "judge_url and judge_model belong together: where the judge is, and which model gives the verdicts there",
            "pass both, or neither for verdicts by rules.",
        )
    if settings.no_task and not settings.general and not settings.general_data:
        raise ConfigError("no_task leaves nothing to measure", "name --general tasks or --general_data, or drop it.")
    if settings.no_task and settings.data:
        raise ConfigError("no_task and data contradict each other", "pass one of them.")
    if settings.backend != "hf" and not settings.general:
        raise ConfigError(f"backend {settings.backend} runs general tasks, and none is named", "name --general tasks.")
    if settings.backend != "hf" and importlib.util.find_spec(settings.backend) is None:
        raise ConfigError(
            f"backend {settings.backend} needs the package {settings.backend}, which is not installed",
            f"install it (`pip install {settings.backend}`), or leave --backend out.",
        )
