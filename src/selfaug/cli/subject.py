"""What a verb measures: a run of ours, or an adapter or model of any other trainer beside its base.

What only a run folder would tell (base, prompt layout, training data) is asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.options import prompt_option, prompt_settings
from selfaug.common.errors import ConfigError
from selfaug.common.options import option
from selfaug.common.terminal import say, warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer
    from selfaug.run.folder import RunFolder
    from selfaug.run.foreign import Foreign

__all__ = ["Subject", "opened"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_OF_OTHERS = ("adapter_revision", "adapter_subfolder", "model_name_or_path", "model_revision", "trust_remote_code")
_SAID = ("prompt", "renderer", "trained_on")


@dataclass
class Subject:
    """Options of a verb that takes a run, or a tuned model of another trainer."""

    run: str | None = option(
        None,
        "The --output_dir of a finished `selfaug train`, or of an earlier measurement.",
        group="Run",
        positional=True,
    )
    adapter: str | None = option(
        None,
        "PEFT adapter of any trainer: a folder or a hub name.",
        group="In place of a run: what another trainer wrote",
        metavar="ADAPTER",
    )
    adapter_revision: str | None = option(None, "Branch, tag or commit of an adapter on the hub.", metavar="REVISION")
    adapter_subfolder: str | None = option(None, "Folder of the adapter inside of ADAPTER.", metavar="FOLDER")
    tuned_model: str | None = option(None, "Wholly tuned model, in place of an adapter.", metavar="MODEL")
    model_name_or_path: str | None = option(
        None, "Its base model.", metavar="MODEL", shown="what adapter_config.json names"
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a base on the hub.", metavar="REVISION")
    trust_remote_code: bool = option(False, "Let the base bring code of its own.")
    prompt: dict[str, Any] | str | None = prompt_option()
    renderer: str | None = option(
        None, "File or folder with the renderer settings (selfaug_renderer.json) of its training.", metavar="FOLDER"
    )
    trained_on: str | None = option(
        None, "Data that it was trained on, to find rows that are measured and were trained on.", metavar="DATA"
    )


def opened(settings: Subject, *, output_dir: str | None = None) -> RunFolder:
    """Return the folder of the named run, or the folder in which another trainer's model is measured.

    Raises:
        ConfigError: If nothing or several things are named, a part of what is named is missing or unfit, or what must
            be known of it is not.
    """
    from selfaug.run.folder import RunFolder
    from selfaug.run.foreign import check_same, default_folder

    named = [name for name in ("run", "adapter", "tuned_model") if getattr(settings, name) is not None]
    if len(named) != 1:
        received = f"{' and '.join(named)} are both given" if named else "nothing is named that could be opened"
        raise ConfigError(
            received,
            "give the folder of a run, or --adapter ADAPTER --model_name_or_path BASE for an adapter of another "
            "trainer, or --tuned_model MODEL.",
        )
    if settings.run is not None:
        folder = RunFolder.open(settings.run)
        _check_options_of_run(settings, folder, output_dir)
        foreign = folder.foreign
    else:
        foreign = _foreign(settings)
        out = Path(output_dir).expanduser() if output_dir else default_folder(
            str(settings.adapter or settings.tuned_model), settings.adapter_subfolder, settings.adapter_revision
        )  # fmt: skip
        folder = RunFolder(out)
    if foreign is None:
        return folder
    foreign = replace(
        foreign,
        trained_on=_absolute(settings.trained_on) or foreign.trained_on,
        renderer=_renderer(settings, foreign, folder.path),
    )
    folder = replace(folder, foreign=foreign)
    check_same(folder)
    return folder


def _absolute(name: str | None) -> str | None:
    """Return a local path from the root, since the folder of measurements is opened from anywhere; hub names as is."""
    local = Path(name or "").expanduser()
    return str(local.resolve()) if name and local.exists() else name


def _check_options_of_run(settings: Subject, folder: RunFolder, output_dir: str | None) -> None:
    names = (*_OF_OTHERS, "base") if folder.foreign is not None else (*_OF_OTHERS, *_SAID)
    given = [name for name in names if getattr(settings, name, None)] + ["output_dir"] * (output_dir is not None)
    if given:
        raise ConfigError(
            f"{given[0]} is given, and {folder.path} says that itself",
            "leave it out, or name an adapter with --adapter in place of the run."
            + (" --base names a base that has moved." if given[0] == "model_name_or_path" else ""),
        )


def _foreign(settings: Subject) -> Foreign:
    from selfaug.common.weights import model_hash, weights_hash
    from selfaug.lab import shipped
    from selfaug.model.base import Base
    from selfaug.run.foreign import Foreign, adapter_settings, located
    from selfaug.run.model_source import check_model

    if getattr(settings, "base", None):
        raise ConfigError("base is given with an adapter of another trainer", "name it with --model_name_or_path.")
    adapter = settings.adapter is not None
    name = str(settings.adapter or settings.tuned_model)
    folder = located(name, settings.adapter_revision, settings.adapter_subfolder, adapter=adapter)
    body, shown = adapter_settings(folder) if adapter else ({}, {})
    written = body.get("base_model_name_or_path")
    base, revision, kept = settings.model_name_or_path, settings.model_revision, Base.read(folder)
    if base is None:
        base, revision = _written_base(name, written, adapter), revision or body.get("revision")
        if kept is not None and kept.name == base:
            revision = revision or kept.revision
        _check_written_base(name, base, revision, settings.trust_remote_code)
    else:
        base = shipped.resolve(base)
        check_model(base, revision=revision or "main", trust_remote_code=settings.trust_remote_code)
        if written and written != base:
            say(f"{name} was trained on {written}, as its adapter_config.json says, and is measured against {base}.")
    if kept is not None:
        kept.require(base, revision, folder)
    inside = "".join([f"/{settings.adapter_subfolder}" * bool(settings.adapter_subfolder),
                      f"@{settings.adapter_revision}" * bool(settings.adapter_revision)])  # fmt: skip
    found = Foreign(
        name=f"{name}{inside}",
        folder=folder.resolve(),
        adapter=adapter,
        weights="",
        base=str(_absolute(base)),
        base_revision=revision or "main",
        base_weights=model_hash(base, revision or "main"),
        trust_remote_code=settings.trust_remote_code,
        tokenizer="",
        trained_on=None,
        settings=shown,
    )
    tokenizer = str(found.folder) if any((folder / file).is_file() for file in _TOKENIZER_FILES) else found.base
    found = replace(found, weights=weights_hash(found.files(), full=True), tokenizer=tokenizer)
    _compare_tokenizers(found)
    return found


def _written_base(name: str, written: Any, adapter: bool) -> str:
    if isinstance(written, str) and written:
        return written
    why = "its adapter_config.json names none" if adapter else "a model's files do not name it"
    raise ConfigError(f"the base model of {name} is not known: {why}", "pass --model_name_or_path BASE.")


def _check_written_base(name: str, base: str, revision: str | None, trust: bool) -> None:
    from selfaug.run.model_source import check_model

    try:
        check_model(base, revision=revision or "main", trust_remote_code=trust)
    except ConfigError as error:
        raise ConfigError(
            f"the adapter_config.json of {name} names {base} as its base model, which cannot be used: {error.message}",
            f"pass where it lies with --model_name_or_path BASE; or {error.hint}",
        ) from None


def _compare_tokenizers(foreign: Foreign) -> None:
    """Say how a tokenizer beside the tuned weights differs from the base's."""
    if foreign.tokenizer == foreign.base:
        return
    from selfaug.data.template import template_of

    own = _tokenizer(foreign)
    try:
        base = _tokenizer(replace(foreign, tokenizer=foreign.base))
    except ConfigError:
        return  # some bases have no tokenizer of their own, and the one beside the adapter is used
    if own.get_vocab() != base.get_vocab():
        warn(
            f"the tokenizer beside {foreign.name} has another vocabulary ({len(own)} tokens) than its base's "
            f"({len(base)}); prompts are made with the first, and the base reads them too.",
            "where the training added tokens, the base does not know them.",
        )
    if template_of(own) != template_of(base):
        say(f"The tokenizer beside {foreign.name} has another chat template than its base's; both models get the "
            "first.")  # fmt: skip


def _tokenizer(foreign: Foreign) -> PreTrainedTokenizerBase:
    from selfaug.cli.encoding import load_tokenizer

    beside = foreign.tokenizer != foreign.base
    where: dict[str, Any] = {} if beside else {"revision": foreign.base_revision}
    return load_tokenizer(foreign.tokenizer, trust_remote_code=foreign.trust_remote_code, **where)


def _renderer(settings: Subject, foreign: Foreign, out: Path) -> Renderer | None:
    """Return the prompt layout: the given one, that of an earlier measurement, or that beside the weights."""
    from selfaug.data.prompt_files import SETTINGS
    from selfaug.data.prompts import Renderer

    prompt = prompt_settings(settings.prompt, settings.renderer)
    if settings.renderer is not None:
        path = Path(settings.renderer).expanduser()
        found = Renderer.load(path if path.is_dir() else path.parent)
        found.check(_tokenizer(foreign))
        return found
    if prompt is None:
        place = next((folder for folder in (out, foreign.folder) if (folder / SETTINGS).is_file()), None)
        return None if place is None else Renderer.load(place)
    found = Renderer.for_tokenizer(_tokenizer(foreign), **prompt)
    defaults = {name: getattr(found, name) for name in ("mode", "system", "abstention") if name not in prompt}
    if defaults:
        said = "; ".join(f"{name} {value!r}" for name, value in defaults.items())
        say(f"The prompt's settings that are not given are our defaults: {said}; see docs/evaluate.md.")
    return found
