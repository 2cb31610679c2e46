"""`selfaug cache`: write the base's hidden states at aligned positions once, for every training on the same data.

Takes the words of `selfaug train`, so that both see the same rows, and trains nothing. Data on stdout is one line, the
folder of the cache.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfaug.cli.config import ALL, Call
from selfaug.cli.options import TRAIN
from selfaug.common.errors import ConfigError
from selfaug.common.terminal import emit, say

__all__ = ["COMMAND", "run"]

COMMAND = replace(
    TRAIN,
    name="cache",
    about=__doc__ or "",
    examples=(
        "selfaug cache --config settings.yaml --dataset_name train.jsonl --reference_cache cache/mine",
        "selfaug cache --model_name_or_path lab --dataset_name train.jsonl --reference_cache cache/lab",
    ),
)


def run(call: Call[Any]) -> int:
    """Write the missing shards of the cache in this process, and return the exit code."""
    from selfaug.cli.encoding import check_embeddings, encoded_tables, tokenizer_and_renderer
    from selfaug.cli.outputs import check_writable
    from selfaug.cli.parsing import parse, print_all_help
    from selfaug.cli.rehearsal import rehearse
    from selfaug.cli.train import check_reference, make_trainer, settle
    from selfaug.run.model_source import check_model

    argv = call.argv
    if ALL in argv:
        print_all_help(COMMAND)
        return 0
    arguments = parse(argv)
    values = arguments.values
    if values["reference_cache"] is None:
        raise ConfigError("no folder is given for the cache", "pass --reference_cache DIR, as to `selfaug train`.")
    check_writable(Path(values["reference_cache"]), "reference_cache")
    facts = check_model(
        values["model_name_or_path"], revision=values["model_revision"], trust_remote_code=values["trust_remote_code"]
    )
    settings = settle(arguments, facts)
    if settings.run.dry_run:
        raise ConfigError(
            "dry_run tells what a training takes, and `selfaug cache` trains nothing",
            "pass it to `selfaug train`, which also tells how large the cache will be.",
        )
    if not settings.training.aligns:
        raise ConfigError(
            f"alpha={settings.training.alpha} aligns nothing, so there is nothing to cache", "give an alpha above 0."
        )
    check_reference(settings)
    if arguments.launch:
        say("selfaug cache runs in one process; the launcher's flags have no effect on it.")
    tokenizer, renderer = tokenizer_and_renderer(settings)
    rehearse(settings, tokenizer)
    say(f"reading {values['dataset_name'] or 'the data sets'} ...")
    tables, _, _ = encoded_tables(settings, tokenizer, renderer)
    check_embeddings(tables, settings, tokenizer, facts.embeddings)
    with tempfile.TemporaryDirectory() as folder:
        settings.training.output_dir = folder  # the trainer would create the user's folder
        say(f"loading the model {settings.model.model_name_or_path} ...")
        trainer = make_trainer(settings, tables, tokenizer, renderer)
        written = trainer.write_reference_cache(thorough=True)
    say(f"{written} shards written" if written else "nothing to write: the cache is whole")
    emit(str(values["reference_cache"]))
    return 0
