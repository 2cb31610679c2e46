"""Opens the two models that a run compares, base and tuned, without loading the base twice.

With an adapter one model is loaded: the base is it with the adapter off. Where that would not be the base (adapters
that rewrote base weights or trained biases) and for models trained as a whole, the two are loaded one after the other,
so that there is never more than one in memory.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError
from selfaug.common.fingerprint import file_hash
from selfaug.common.quiet import unwarned
from selfaug.run.manifest import read_manifest, weight_files, weights_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from selfaug.run.folder import RunFolder

__all__ = ["Origin", "Sides", "check_origin", "renderer_hash"]

_RESTORE = "restore the run's folder and its base model as they were, or train anew."


@dataclass(frozen=True)
class Origin:
    """Where base and tuned model come from, checked against the run's manifest before anything is loaded.

    Args:
        base: Folder or hub name of the base model.
        revision: Of a hub model.
        trust_remote_code: Whether the model may bring code of its own.
        final: Folder of the finished adapter or model.
        adapter: Whether ``final`` holds an adapter.
        switchable: Whether the adapter switched off gives back the base.
        base_hash: Of the base's weight files; ``None`` where they are not on this machine.
        tuned_hash: Of the files in ``final``.
        context: Longest sequence of the base in tokens; ``None`` where its configuration names none.
        quantization: ``transformers``' quantisation settings of the base during training, or ``None``.
        embeddings: Rows of the base's embedding; ``None`` where its configuration names none.
    """

    base: str
    revision: str
    trust_remote_code: bool
    final: Path
    adapter: bool
    switchable: bool
    base_hash: str | None
    tuned_hash: str
    context: int | None = None
    quantization: Any = None
    embeddings: int | None = None


def check_origin(run: RunFolder, base: str | None = None) -> Origin:
    """The run's models, by their files alone.

    Args:
        run: A finished run.
        base: Where the base model lies now, if not where the run found it.

    Raises:
        ConfigError: If the adapter's files are missing or changed, or the base is not the one trained on.
    """
    from selfaug.run.model_source import check_model, model_folder

    config = run.read_config()
    final = run.finished
    assert final is not None
    adapter = final == run.adapter
    files = _files(final, adapter)
    manifest = read_manifest(run.manifest) if run.manifest.is_file() else {}
    tuned_hash = weights_hash(files, full=True)
    written = (manifest.get("finished") or {}).get("weights")
    if written is not None and written != tuned_hash:
        raise ConfigError(
            f"the weights in {final} are not those that the run wrote ({written} in its manifest, {tuned_hash} now), "
            "so the results would not be the run's",
            _RESTORE,
        )
    name, trust = base or str(config.get("model_name_or_path")), bool(config.get("trust_remote_code"))
    # What a branch of the hub names may have moved since; the commit that was trained on has not.
    commit = None if base is not None else (manifest.get("model") or {}).get("commit")
    revision = str(commit or config.get("model_revision") or "main")
    try:
        facts = check_model(name, revision=revision, trust_remote_code=trust)
    except ConfigError as error:
        if base is not None:
            raise ConfigError(error.message.replace("model_name_or_path", "--base"), error.hint) from None
        hint = "if it has moved, pass where it lies now with --base"
        raise ConfigError(
            f"the base model of the run in {run.path}: {error.message}", f"{hint}; else {error.hint}"
        ) from None
    folder = model_folder(name, revision)
    trained_on = (manifest.get("model") or {}).get("weights")
    base_hash = None
    if folder is not None and weight_files(folder):
        base_hash = weights_hash(weight_files(folder), full=str(trained_on).startswith("sha256:"))
        if trained_on is not None and base_hash != trained_on:
            raise ConfigError(
                f"the weights of the base model {name} are not those that the run in {run.path} was trained on "
                f"({trained_on} in its manifest, {base_hash} now): the adapter belongs to another base",
                "pass the right base with --base, or restore its files.",
            )
    return Origin(
        base=name,
        revision=revision,
        trust_remote_code=trust,
        final=final,
        adapter=adapter,
        switchable=adapter and _switchable(final),
        base_hash=base_hash,
        tuned_hash=tuned_hash,
        context=facts.context,
        quantization=_quantized(config),
        embeddings=facts.embeddings,
    )


def _files(final: Path, adapter: bool) -> list[Path]:
    if not adapter:
        files = weight_files(final)
    else:
        if not (final / "adapter_config.json").is_file():
            raise ConfigError(f"{final} has no adapter_config.json, so it holds no adapter", _RESTORE)
        files = [path for path in (final / "adapter_model.safetensors", final / "adapter_model.bin") if path.is_file()]
    if not files:
        raise ConfigError(f"{final} has no weights", _RESTORE)
    return files


def _switchable(final: Path) -> bool:
    from peft import PeftConfig

    from selfaug.reference.checks import check_peft

    config = PeftConfig.from_pretrained(str(final))
    check_peft(config, "path")
    try:
        check_peft(config, "base")
    except ConfigError:
        return False
    return True


def _quantized(config: dict[str, Any]) -> Any:
    names = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "dtype")
    if not (config.get("load_in_4bit") or config.get("load_in_8bit")):
        return None
    from trl import ModelConfig, get_quantization_config

    return get_quantization_config(ModelConfig(**{n: config[n] for n in names if config.get(n) is not None}))


class Sides:
    """The base and the tuned model of a run, one at a time.

    Args:
        origin: Of :func:`check_origin`.
        dtype: Number format of the weights; ``auto`` is that of the base's files.

    Raises:
        ConfigError: When a model is loaded that cannot be, or the adapter does not fit the base.
    """

    def __init__(self, origin: Origin, dtype: str = "auto") -> None:
        self.origin, self.dtype = origin, dtype
        self._model: PreTrainedModel | None = None
        self._peft: Any = None  # PEFT's wrapper of the model, where it has an adapter
        self._loaded = ""  # "both" where the adapter is switched, else the side in memory
        self.loads = 0

    def order(self) -> tuple[str, str]:
        """Base and tuned; the one in memory first."""
        return ("tuned", "base") if self._loaded == "tuned" else ("base", "tuned")

    def holds(self, name: str) -> bool:
        """Whether the model of a side is in memory."""
        return self._model is not None and self._loaded in ("both", name)

    @contextmanager
    def side(self, name: str) -> Iterator[PreTrainedModel]:
        """Inside, the yielded causal model (without PEFT's wrapper) is the base or the tuned one, ready to evaluate."""
        import torch

        from selfaug.model.switch import adapters_off

        wanted = "both" if self.origin.switchable else name
        if self._loaded != wanted or self._model is None:
            self.release()
            self._model, self._loaded = self._load(wanted), wanted
        with torch.no_grad():
            if name == "base" and wanted == "both":
                with adapters_off(self._model):
                    yield self._model
            else:
                yield self._model

    def fold(self) -> PreTrainedModel:
        """Return the tuned model with its adapter folded into its weights; this object forgets it.

        A head that shares its weight with the embedding gets its own where only one of the two is adapted.

        Raises:
            ConfigError: If PEFT cannot fold this kind of adapter, or its weights are not finite.
        """
        with self.side("tuned") as model:
            if any(getattr(config, "layer_replication", None) for config in self._peft.peft_config.values()):
                raise ConfigError(
                    f"the adapter in {self.origin.final} repeats layers of the base (layer_replication): it cannot be "
                    "folded, as the copies of a layer share its weights and have each their own adapter",
                    "serve the base model with the adapter as it is.",
                )
            _part_tied(model)
        try:
            # PEFT says that a head is no longer tied to the embedding; it is written so.
            with unwarned(".*(tie_word_embeddings|tied)"):
                folded: PreTrainedModel = self._peft.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"the adapter in {self.origin.final} cannot be folded into its base model: {_first(error)}",
                "serve the base model with the adapter as it is.",
            ) from error
        self.release()
        return folded

    def release(self) -> None:
        """Forget the loaded model."""
        import torch

        if self._model is None:
            return
        self._model, self._peft, self._loaded = None, None, ""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, wanted: str) -> PreTrainedModel:
        origin = self.origin
        self.loads += 1
        if wanted == "base":
            return self._causal(origin.base, origin.revision)
        if not origin.adapter:
            return self._causal(str(origin.final), "main")
        from peft import PeftModel

        base = self._causal(origin.base, origin.revision)
        try:
            model = PeftModel.from_pretrained(base, str(origin.final)).eval()
        except (RuntimeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"the adapter in {origin.final} does not fit the base model {origin.base}: {_first(error)}",
                "it was trained on another base: pass the right one with --base, or restore the files.",
            ) from error
        found: PreTrainedModel = model.get_base_model()
        self._peft = model
        return found

    def _causal(self, name: str, revision: str) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM

        where: dict[str, Any] = {}
        if torch.accelerator.is_available():
            where["device_map"] = "auto" if torch.accelerator.device_count() > 1 else {"": 0}
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                name,
                revision=revision,
                trust_remote_code=self.origin.trust_remote_code,
                dtype=self.dtype,
                quantization_config=self.origin.quantization,
                **where,
            )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ConfigError(f"the model {name} cannot be loaded: {_first(error)}", _RESTORE) from error
        return model.eval()


def _part_tied(model: PreTrainedModel) -> None:
    """Give the head a weight of its own where it shares the embedding's and an adapter would be folded into that."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    plain = [part.get_base_layer() if isinstance(part, BaseTunerLayer) else part for part in (embedding, head)]
    weights = [getattr(part, "weight", None) for part in plain]
    if weights[0] is None or weights[0] is not weights[1] or plain == [embedding, head]:
        return
    plain[1].weight = torch.nn.Parameter(weights[1].detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _first(error: BaseException) -> str:
    # peft and torch say first that something is wrong, and in the lines below what.
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] if lines else type(error).__name__


def renderer_hash(final: Path) -> str | None:
    """Hash of the saved prompt settings, or ``None`` where there are none."""
    from selfaug.data.prompt_files import SETTINGS

    path = final / SETTINGS
    return file_hash(path) if path.is_file() else None
