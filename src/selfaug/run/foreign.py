"""A tuned model that another trainer wrote: where its weights lie, what is known of it, and where it is measured.

There is no run folder of ours, so what is measured goes to a folder of its own, whose ``measured.json`` says of what.
Reports, gates and further measurements need only that folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError
from selfaug.common.files import missing_path, read_json
from selfaug.common.store import write_whole
from selfaug.common.weights import weight_files, weights_hash
from selfaug.data.prompt_files import SETTINGS
from selfaug.data.prompts import Renderer
from selfaug.run.folder import ADAPTER_CONFIG, DESCRIPTION
from selfaug.run.model_source import hub_snapshot, looks_local

if TYPE_CHECKING:
    from selfaug.run.folder import RunFolder

__all__ = [
    "Foreign",
    "adapter_settings",
    "check_same",
    "default_folder",
    "describe",
    "located",
    "measured_of",
]

SCHEMA = 1
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors", "adapter_model.bin")
_AGAIN = "name the adapter again: `selfaug evaluate --adapter ...`."


@dataclass(frozen=True)
class Foreign:
    """A tuned model of another trainer.

    Args:
        name: Folder as the user gave it, or hub name with subfolder and revision.
        folder: Folder of its files on this machine.
        adapter: Whether it is a PEFT adapter, not a whole model.
        weights: Hash of its weight files.
        base: Folder or hub name of its base model.
        base_revision: Revision of a base on the hub.
        trust_remote_code: Whether the base may bring code of its own.
        tokenizer: Folder or hub name of the tokenizer.
        trained_on: Data that it was trained on; ``None`` where that is not known.
        settings: What its files say of the training, under the names of our own settings.
        base_weights: Hash of the base's weight files; ``None`` where they are not on this machine yet.
        renderer: Prompt layout of its training; ``None`` where that is not known.
    """

    name: str
    folder: Path
    adapter: bool
    weights: str
    base: str
    base_revision: str
    trust_remote_code: bool
    tokenizer: str
    trained_on: str | None
    settings: Mapping[str, Any]
    base_weights: str | None = None
    renderer: Renderer | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The settings of its training, as far as they are known."""
        return {
            "method": "another trainer",
            "model_name_or_path": self.base,
            "model_revision": self.base_revision,
            "trust_remote_code": self.trust_remote_code,
            "use_peft": self.adapter,
            **({} if self.trained_on is None else {"dataset_name": self.trained_on}),
            **self.settings,
        }

    @property
    def manifest(self) -> dict[str, Any]:
        """What a run's manifest would say, as far as it is known."""
        model = {"name": self.base, "revision": self.base_revision, "weights": self.base_weights}
        return {"model": model, "finished": {"weights": self.weights}}

    @classmethod
    def read(cls, out: Path) -> Foreign:
        """Return what a folder of measurements describes; the weights' hash is of the files as they are now.

        Raises:
            ConfigError: If the description is damaged.
        """
        body = read_json(out / DESCRIPTION, hint=_AGAIN, error=ConfigError)
        try:
            if body.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            found = cls(**body | {"folder": Path(body["folder"])})
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{out / DESCRIPTION} does not describe a tuned model of schema {SCHEMA}", _AGAIN
            ) from None
        renderer = Renderer.load(out) if (out / SETTINGS).is_file() else None
        now = weights_hash(files, full=True) if (files := found.files()) else found.weights
        return dataclasses.replace(found, renderer=renderer, weights=now)

    def files(self) -> list[Path]:
        """Return the weight files; none where they are gone."""
        if self.adapter:
            file = self.folder / ADAPTER_WEIGHTS
            return [file] if file.is_file() else []
        return weight_files(self.folder)


def describe(run: RunFolder) -> None:
    """Write what the folder of measurements is of; nothing for a run of ours.

    Raises:
        DiskError: If the folder cannot be written.
    """
    foreign = run.foreign
    if foreign is None:
        return
    body = {field.name: getattr(foreign, field.name) for field in dataclasses.fields(foreign)}
    del body["renderer"]
    text = json.dumps({"schema": SCHEMA, **body, "folder": str(foreign.folder.resolve())}, indent=1, ensure_ascii=False)
    write_whole(run.path / DESCRIPTION, text + "\n")
    if foreign.renderer is not None:
        foreign.renderer.save(run.path)


def check_same(run: RunFolder) -> None:
    """Check that the folder holds no measurements of another model.

    Raises:
        ConfigError: If it does, or is a run folder, or lies in the hub's cache.
    """
    foreign, out = run.foreign, run.path
    assert foreign is not None
    elsewhere = "name another folder with --output_dir."
    if _in_hub_cache(out):
        raise ConfigError(f"output_dir {out} lies in the hub's cache, whose files are the hub's", elsewhere)
    if run.config.is_file() or (out / ADAPTER_CONFIG).is_file() or weight_files(out):
        raise ConfigError(f"output_dir {out} holds a run, an adapter or a model of its own", elsewhere)
    if not (out / DESCRIPTION).is_file():
        return
    other = Foreign.read(out)
    # A branch of the hub moves, and its new commit lies in another folder.
    moved = other.name == foreign.name and _in_hub_cache(other.folder) and _in_hub_cache(foreign.folder)
    if not moved and other.folder.resolve() != foreign.folder.resolve() and other.weights != foreign.weights:
        raise ConfigError(f"output_dir {out} holds measurements of another model, {other.name}", elsewhere)
    known = other.base_weights is not None and foreign.base_weights is not None
    same = (
        other.base_weights == foreign.base_weights
        if known
        else (other.base, other.base_revision) == (foreign.base, foreign.base_revision)
    )
    if not same:
        raise ConfigError(
            f"output_dir {out} holds measurements against another base, {other.base}; this one is {foreign.base}",
            elsewhere,
        )


def default_folder(name: str, subfolder: str | None = None, revision: str | None = None) -> Path:
    """Return where a tuned model is measured by default.

    That is ``measured-NAME`` beside its folder, or in the working directory for a model of the hub. The name does not
    begin like the folder's, since trainers delete what begins with ``checkpoint-``.
    """
    local = Path(name).expanduser() / (subfolder or "")
    if looks_local(name) and not _in_hub_cache(local):
        return local.resolve().parent / f"measured-{local.resolve().name}"
    words = [*Path(name).parts[-2:], *Path(subfolder or "").parts, *Path(revision or "").parts]
    return Path(f"measured-{'--'.join(words)}")


def measured_of(name: str) -> Path | None:
    """Return the folder in which a tuned model has been measured by default, or ``None`` where it has not."""
    out = default_folder(name)
    return out if (out / DESCRIPTION).is_file() else None


def _in_hub_cache(path: Path) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE

    return path.resolve().is_relative_to(Path(HF_HUB_CACHE).resolve())


def located(name: str, revision: str | None, subfolder: str | None, *, adapter: bool) -> Path:
    """Return the folder with the files of an adapter or a whole model; those of a hub name are downloaded.

    Raises:
        ConfigError: If there is no such folder or name, or it holds something else, no weights, or pickled ones.
    """
    setting = "adapter" if adapter else "tuned_model"
    if looks_local(name):
        folder = Path(name).expanduser()
        if not folder.exists():
            raise missing_path(setting, name, "check the path; a hub name has the form owner/name.")
        if revision is not None:
            raise ConfigError(f"adapter_revision is {revision!r}, and {name} is a folder", "leave it out.")
    else:
        prefix = f"{subfolder}/" if subfolder else ""
        folder = hub_snapshot(name, revision, setting, [prefix + pattern for pattern in _FILES])
    folder = folder / (subfolder or "")
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise ConfigError(f"{setting} {str(folder)!r} {what}", f"give the folder that holds {ADAPTER_CONFIG}.")
    if adapter:
        _check_adapter(folder)
    elif not (folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file():
        kind = "an adapter" if (folder / ADAPTER_CONFIG).is_file() else "no model: it has no config.json"
        raise ConfigError(f"tuned_model {str(folder)!r} holds {kind}", "pass an adapter with --adapter.")
    return folder


def _check_adapter(folder: Path) -> None:
    if not (folder / ADAPTER_CONFIG).is_file():
        inside = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
        if (folder / "config.json").is_file():
            hint = "it looks like a whole model: pass it with --tuned_model."
        elif inside:
            hint = f"name one of the adapters in it: {', '.join(inside[-3:])}."
        else:
            hint = "give the folder that PEFT's `save_pretrained` wrote."
        raise ConfigError(f"adapter {str(folder)!r} has no {ADAPTER_CONFIG}, so it holds no adapter", hint)
    if (folder / ADAPTER_WEIGHTS).is_file():
        return
    if (folder / "adapter_model.bin").is_file():
        raise ConfigError(
            f"adapter {str(folder)!r} has its weights pickled (adapter_model.bin), and reading a pickle can run code",
            "where you trust it: load it with PEFT and save it again, which writes safetensors.",
        )
    raise ConfigError(f"adapter {str(folder)!r} has no weights ({ADAPTER_WEIGHTS})", "copy or download the file.")


def adapter_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of ``adapter_config.json``, and what of it is shown, under the names of our own settings.

    Raises:
        ConfigError: If the file is damaged.
    """
    body = read_json(folder / ADAPTER_CONFIG, hint="restore the file.", error=ConfigError)
    if not isinstance(body, dict) or not isinstance(body.get("peft_type"), str):
        raise ConfigError(f"{folder / ADAPTER_CONFIG} names no peft_type", "restore the file that PEFT wrote.")
    names = {"peft_type": "peft_type", "r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout",
             "target_modules": "lora_target_modules", "use_dora": "use_dora", "use_rslora": "use_rslora",
             "modules_to_save": "lora_modules_to_save"}  # fmt: skip
    shown = {ours: body[theirs] for theirs, ours in names.items() if body.get(theirs) not in (None, False, [])}
    if isinstance(shown.get("lora_target_modules"), list):
        shown["lora_target_modules"] = sorted(shown["lora_target_modules"])
    return body, shown
