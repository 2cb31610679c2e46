"""Checks that the named model exists and is usable, before anything is loaded.

Local paths and hub names are distinguished by their form, so that a mistyped path is an error at once and not after
minutes of network retries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError
from selfaug.common.files import missing_path, read_json
from selfaug.common.weights import model_folder, weight_files
from selfaug.data.vocabulary import embedding_rows
from selfaug.run.folder import ADAPTER_CONFIG

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["ModelFacts", "check_model", "check_weights", "hub_snapshot", "looks_local"]

_DATA_ENDINGS = (".json", ".jsonl", ".gz", ".bz2", ".tsv", ".csv", ".parquet", ".txt", ".md", ".zip", ".arrow")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_HUB_SECONDS = 10.0
_EXISTS = "give a folder that exists, or a hub name of the form owner/name."


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a base model that are known before its weights are loaded.

    Args:
        folder: Folder of its files; ``None`` for a hub model that is not downloaded yet.
        context: Longest sequence in tokens that its positions allow; ``None`` where the configuration names none.
        quantization: Name of the quantisation method if the stored weights are quantised, else ``None``.
        commit: Commit on the hub; ``None`` for a local model.
        embeddings: Number of rows of its embedding; ``None`` where the configuration names none.
    """

    folder: Path | None
    context: int | None
    quantization: str | None
    commit: str | None
    embeddings: int | None = None


def looks_local(name: str) -> bool:
    """Return whether a name means a local path: it exists, begins like a path, or cannot be a hub name."""
    path = Path(name).expanduser()
    if path.exists() or name.startswith((".", "/", "~")) or "\\" in name or name.lower().endswith(_DATA_ENDINGS):
        return True
    parts = Path(name).parts
    return len(parts) > 2 or (len(parts) == 2 and Path(parts[0]).is_dir())


def check_model(name: str | None, *, revision: str = "main", trust_remote_code: bool = False) -> ModelFacts:
    """Check that a path or hub name holds a causal language model with weights and a tokenizer.

    Raises:
        ConfigError: If it does not; the message names the missing file and the place.
    """
    if not name:
        raise ConfigError("no model is given", "pass --model_name_or_path, a folder or a name on the hub.")
    if looks_local(name):
        folder = Path(name).expanduser()
        if not folder.exists():
            raise missing_path("model_name_or_path", name, "check the path; a hub name has the form owner/name.")
        _check_folder(folder)
        commit = None
    else:
        located = _check_hub(name, revision)
        folder, commit = located if located[0] is not None else (None, located[1])  # type: ignore[assignment]
    config = _read_config(name, revision, trust_remote_code)
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        values = quantization if isinstance(quantization, dict) else quantization.to_dict()
        quantization = str(values.get("quant_method", "unknown"))
    return ModelFacts(folder, int(context) if context else None, quantization, commit, embedding_rows(config))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"model_name_or_path {str(folder)!r} is a file, not a folder", "give the model's folder.")
    names = {entry.name for entry in folder.iterdir()}
    if "config.json" not in names:
        if ADAPTER_CONFIG in names:
            base = _json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
            raise ConfigError(
                f"model_name_or_path {str(folder)!r} holds an adapter, not a model",
                f"pass its base model ({base}), or merge the adapter first: `selfaug merge`.",
            )
        raise ConfigError(
            f"model_name_or_path {str(folder)!r} has no config.json, so it holds no model",
            "give the folder that `save_pretrained` wrote or the hub's files were downloaded to.",
        )
    _json(folder / "config.json")
    check_weights(folder)
    if not names & {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt"}:
        raise ConfigError(
            f"model_name_or_path {str(folder)!r} has no tokenizer files", "copy the model's tokenizer files there."
        )


def check_weights(folder: Path) -> None:
    """Check that all weight files are there and no safetensors file is cut short.

    Raises:
        ConfigError: If a file is missing or truncated; with its name.
    """
    files = weight_files(folder)
    if not files:
        raise ConfigError(
            f"model_name_or_path {str(folder)!r} has no weights (*.safetensors or pytorch_model*.bin)",
            "download the model's weight files, or check that this is the right folder.",
        )
    for index in (folder / name for name in _INDEXES):
        if index.is_file():
            shards = set(_json(index).get("weight_map", {}).values())
            lost = sorted(shard for shard in shards if not (folder / shard).is_file())
            if lost:
                raise ConfigError(
                    f"model_name_or_path {str(folder)!r} lacks {len(lost)} of {len(shards)} weight files: {lost[0]}",
                    "download the missing files.",
                )
    for path in files:
        if path.suffix == ".safetensors" and not _is_whole(path):
            raise ConfigError(f"the weight file {path} is cut short or damaged", "download or save it again.")


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return False
    return path.stat().st_size == 8 + length + max(ends, default=0)


def _check_hub(name: str, revision: str) -> tuple[Path | None, str | None]:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HFValidationError

    setting = "model_name_or_path"
    try:
        folder = model_folder(name, revision)
    except HFValidationError:
        raise _no_hub_name(setting, name) from None
    if folder is not None:
        return folder, folder.name if folder.parent.name == "snapshots" else None
    if is_offline_mode():
        raise _offline(setting, name)
    with _hub_errors(setting, name, revision):
        return None, HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS).sha


def hub_snapshot(name: str, revision: str | None, setting: str, patterns: Sequence[str]) -> Path:
    """Return the folder in the hub's cache with the files of a repository, downloaded where they are missing.

    Args:
        name: Name on the hub.
        revision: Branch, tag or commit; ``None`` for the main branch.
        setting: Setting that names it, for messages.
        patterns: Patterns of the files that are needed.

    Raises:
        ConfigError: If the hub has no such repository or revision, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    with _hub_errors(setting, name, revision or "main"):
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
        except HFValidationError:
            raise _no_hub_name(setting, name) from None
        except LocalEntryNotFoundError:
            if is_offline_mode():
                raise _offline(setting, name) from None
            raise


def _no_hub_name(setting: str, name: str) -> ConfigError:
    return ConfigError(
        f"{setting} {name!r} is neither a folder nor a possible name on the hub",
        "give a folder, or a hub name of the form owner/name.",
    )


def _offline(setting: str, name: str) -> ConfigError:
    return ConfigError(
        f"{setting} {name!r} is no folder here, is not in the hub's cache, and the hub is switched off "
        "(HF_HUB_OFFLINE)",
        _EXISTS,
    )


@contextmanager
def _hub_errors(setting: str, name: str, revision: str) -> Iterator[None]:
    """Turn the errors of a request to the hub into the user's."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except ConfigError:
        raise
    except GatedRepoError:
        raise ConfigError(
            f"{setting} {name!r} asks for consent to its licence", "accept it on the hub, then log in."
        ) from None
    except RevisionNotFoundError:
        flag = "--model_revision" if setting == "model_name_or_path" else "--adapter_revision"
        raise ConfigError(f"model {name!r} has no revision {revision!r}", f"check {flag}.") from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"{setting} {name!r} is no folder here and does not exist on the hub, or is private", _EXISTS
        ) from None
    except Exception as error:
        kind = type(error).__name__
        raise ConfigError(
            f"{setting} {name!r} is no folder here, and the hub did not answer ({kind})", _EXISTS
        ) from error


def _read_config(name: str, revision: str, trust_remote_code: bool) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(Path(name).expanduser()) if looks_local(name) else name,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    except (ValueError, OSError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"the configuration of model {name!r} cannot be used: {first}",
            "check config.json (its model_type), or update transformers; "
            "code that a model brings needs --trust_remote_code true.",
        ) from error


def _json(path: Path) -> dict[str, Any]:
    value = read_json(path, hint="restore the file.", error=ConfigError)
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is no JSON object", "restore the file.")
    return value
