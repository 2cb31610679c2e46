"""Builds the manifest of a run, and checks that of a resumed run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from selfaug.before.align_rows import AlignData
from selfaug.before.probe_rows import probe_path
from selfaug.common.errors import ConfigError
from selfaug.common.fingerprint import files_of
from selfaug.common.terminal import is_main
from selfaug.common.weights import model_hash
from selfaug.data.files import data_files
from selfaug.methods import get_method
from selfaug.methods.options import paths_in
from selfaug.run.manifest import build_manifest, differences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.cli.parsing import Settings
    from selfaug.run.model_source import ModelFacts

__all__ = ["continued", "run_manifest"]


def run_manifest(
    settings: Settings,
    facts: ModelFacts,
    data: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    argv: Sequence[str],
    reports: dict[str, Any],
) -> dict[str, Any]:
    """Return the manifest of a new run; empty on all ranks but the first, which alone writes it.

    Args:
        settings: Settings of the run.
        facts: Facts about the model.
        data: Entries for the data sets.
        tokenizer: Tokenizer of the model.
        argv: Command-line arguments.
        reports: Length reports of the data sets.
    """
    if not is_main():
        return {}
    name = str(settings.model.model_name_or_path)
    return build_manifest(
        command=["selfaug", "train", *argv],
        config=settings.resolved,
        data={**data, **_data_of_method(settings)},
        model={
            "name": name,
            "revision": settings.model.model_revision,
            "commit": facts.commit,
            "weights": model_hash(name, settings.model.model_revision, full=settings.run.full_weight_hash),
        },
        tokenizer=tokenizer,
        seeds={"seed": settings.training.seed, "data_seed": settings.training.data_seed or settings.training.seed},
        lengths=reports,
    )


def _data_of_method(settings: Settings) -> dict[str, Any]:
    """Return the entries for the files that the method's options and ``align_data`` name, by option."""
    training = settings.training
    classes = [part.Options for part in get_method(training.method).parts]
    named = paths_in(classes, cast("dict[str, Any] | None", training.method_options))
    if training.align_data is not None and (texts := AlignData.parse(training.align_data).path) is not None:
        named = {**named, "align_data": texts}
    if training.probe is not None and (prompts := probe_path(training.probe)) is not None:
        named = {**named, "probe": prompts}
    return {name: {"name": str(path), "files": files_of(data_files(path))} for name, path in named.items()}


def continued(old: dict[str, Any], new: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return the manifest of a resumed run: the old one with an entry about the resumption.

    Args:
        old: Manifest of the run so far.
        new: Manifest of this process; empty on all ranks but the first.
        checkpoint: Folder of the checkpoint.

    Raises:
        ConfigError: If data, weights, tokenizer or chat template have changed since the run began.
    """
    if not new:
        return old
    parts = ("data", "model", "tokenizer", "chat_template")
    changed = differences({name: old.get(name) for name in parts}, {name: new.get(name) for name in parts})
    if changed:
        listed = "; ".join(f"{name}: {was} then, {now} now" for name, (was, now) in list(changed.items())[:4])
        raise ConfigError(
            f"the run would go on with something else than it began with ({listed})",
            "restore what has changed, or begin a new run in another --output_dir.",
        )
    entry = {
        "checkpoint": checkpoint.name,
        **{name: new[name] for name in ("created", "command", "config", "versions", "device")},
    }
    return {**old, "resumed": [*old.get("resumed", []), entry]}
