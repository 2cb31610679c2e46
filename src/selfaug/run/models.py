"""The base and the tuned model of a run: the origin of their weights, and how they are loaded with little memory.

With an adapter one model is loaded, and the base is that model with the adapter off. Adapters that rewrote base weights
or trained biases, and models trained without PEFT, need two models. These are loaded one after the other, so that only
one is in memory, or together where both are needed at once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError
from selfaug.common.files import json_of_ours
from selfaug.common.fingerprint import file_hash
from selfaug.common.quiet import unwarned
from selfaug.common.terminal import say
from selfaug.common.weights import model_hash, weight_files, weights_hash
from selfaug.run.checkpoint import numbered, step_of, torn_because
from selfaug.run.fit import (
    check_fit,
    check_kind,
    check_switch,
    first_words,
    fitting,
    load_adapter,
    peft_settings,
    probed,
)
from selfaug.run.folder import ADAPTER_CONFIG
from selfaug.run.model_source import check_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from selfaug.reference import Reference
    from selfaug.run.folder import RunFolder
    from selfaug.run.foreign import Foreign

__all__ = ["Origin", "Sides", "State", "check_origin", "renderer_hash", "states"]

_RESTORE = "restore the run's folder and its base model as they were, or train anew."


@dataclass(frozen=True)
class Origin:
    """The origin of base and tuned model, checked by their files before anything is loaded.

    :func:`check_origin` makes one.

    Args:
        base: Folder or hub name of the base model.
        revision: Revision of a hub model.
        trust_remote_code: Whether the model may bring code of its own.
        final: Folder of the tuned weights: an adapter or a whole model.
        adapter: Whether ``final`` holds an adapter.
        switchable: Whether the adapter switched off gives back the base.
        base_hash: Hash of the base's weight files; ``None`` where they are not on this machine.
        tuned_hash: Hash of the weight files in ``final``; empty where it is not needed.
        context: Longest sequence of the base in tokens; ``None`` where its configuration names none.
        quantization: ``transformers``' quantisation settings of the base during training, or ``None``.
        embeddings: Number of rows of the base's embedding; ``None`` where its configuration names none.
        plain_head: Whether the tuned model's output projection is a matrix, without an adapter of its own.
    """

    base: str
    revision: str
    trust_remote_code: bool
    final: Path
    adapter: bool = False
    switchable: bool = False
    base_hash: str | None = None
    tuned_hash: str = ""
    context: int | None = None
    quantization: Any = None
    embeddings: int | None = None
    plain_head: bool = True

    def require_plain_head(self) -> None:
        """Refuse an adapted output projection, since likelihoods and distances are computed from its matrix.

        Raises:
            ConfigError: With the way out.
        """
        if not self.plain_head:
            raise ConfigError(
                f"the adapter in {self.final} changes the output projection (lm_head) itself, and likelihoods and "
                "distances are computed from that layer's matrix, where the change would be missed",
                "fold it first: `selfaug merge --adapter ... --output_dir OUT`; then pass --tuned_model OUT.",
            )

    def at(self, folder: Path) -> Origin:
        """Return the origin with the same base and the tuned weights of a checkpoint.

        Raises:
            ConfigError: If the folder lacks weights.
        """
        return replace(self, **_tuned(folder, self.adapter))


def check_origin(
    run: RunFolder, base: str | None = None, *, needs_base: bool = True, flag: str | None = "--base"
) -> Origin:
    """Check the files of a run's models, and return their origin.

    Args:
        run: Folder of a finished run.
        base: Folder or hub name of the base model, if it has moved since training.
        needs_base: Whether the base will be used. If not, and the run trained without PEFT, the base may be missing.
        flag: Flag that passes ``base``, for the message; ``None`` where it cannot be passed.

    Raises:
        ConfigError: If the adapter's files are missing or changed, or the base is not the one trained on.
    """
    if run.foreign is not None:
        return _foreign_origin(run.foreign)
    config, final = run.read_config(), run.finished
    assert final is not None
    trust = bool(config.get("trust_remote_code"))
    if not run.is_adapter and base is None and not needs_base:
        facts = check_model(str(final), trust_remote_code=trust)
        return Origin(str(final), "main", trust, final, context=facts.context)
    manifest = run.read_manifest()
    tuned = _tuned(final, run.is_adapter)
    written = (manifest.get("finished") or {}).get("weights")
    if written is not None and written != tuned["tuned_hash"]:
        raise ConfigError(
            f"the weights in {final} are not those that the run wrote ({written} in its manifest, "
            f"{tuned['tuned_hash']} now), so the results would not be the run's",
            _RESTORE,
        )
    trained_on = manifest.get("model") or {}
    # A branch of the hub may have moved since the training, so the commit is used.
    commit = None if base is not None else trained_on.get("commit")
    name = base or str(config.get("model_name_or_path"))
    try:
        fields = _base(name, str(commit or config.get("model_revision") or "main"), trust, trained_on.get("weights"))
    except ConfigError as error:
        if base is not None and flag is not None:
            again = f"pass another with {flag}: {error.hint}"
            raise ConfigError(error.message.replace("model_name_or_path", flag), again) from None
        moved = "" if flag is None else f"if it has moved, pass where it lies now with {flag}; else "
        raise ConfigError(f"the base model of the run in {run.path}: {error.message}", moved + error.hint) from None
    return Origin(**fields, **tuned, quantization=_quantized(config))


def _foreign_origin(foreign: Foreign) -> Origin:
    """Check that a tuned model of another trainer fits its base, and return the origin of both.

    Raises:
        ConfigError: If it does not fit.
    """
    fields = _base(foreign.base, foreign.base_revision, foreign.trust_remote_code)
    origin = Origin(**fields, **_tuned(foreign.folder, foreign.adapter))
    if foreign.adapter:
        plain = check_fit(foreign.folder, foreign.base, foreign.base_revision, foreign.trust_remote_code)
        return replace(origin, plain_head=plain)
    rows = check_model(str(foreign.folder), trust_remote_code=foreign.trust_remote_code).embeddings
    if None not in (rows, origin.embeddings) and rows != origin.embeddings:
        raise ConfigError(
            f"the tuned model {foreign.name} has {rows} tokens and the base {foreign.base} has {origin.embeddings}, so "
            "their distributions cannot be compared",
            "name the base that it was trained from; if the training added tokens, resize a copy of the base first.",
        )
    return origin


@dataclass(frozen=True)
class State:
    """The run's weights at one step: a checkpoint, or the finished weights (``name`` is ``final``)."""

    name: str
    step: int | None
    folder: Path


def states(run: RunFolder, *, every: bool) -> list[State]:
    """Return the finished weights, with ``every`` after each whole checkpoint; torn ones are named on stderr."""
    final = run.finished
    assert final is not None
    checkpoints: list[State] = []
    for folder in reversed(numbered(run.checkpoints)) if every else ():
        reason = torn_because(folder)
        if reason is None:
            checkpoints.append(State(folder.name, step_of(folder), folder))
        else:
            say(f"{folder} is not a whole checkpoint ({reason}) and is left out.")
    try:
        step = json_of_ours(run.manifest)["finished"]["steps"]
    except (KeyError, TypeError):
        step = None
    return [*checkpoints, State("final", step, final)]


def _base(name: str, revision: str, trust_remote_code: bool, trained_on: str | None = None) -> dict[str, Any]:
    """Return the fields of an origin that describe its base.

    Args:
        name: Folder or hub name.
        revision: Revision of a hub model.
        trust_remote_code: Whether the model may bring code of its own.
        trained_on: Hash of the weights that were trained on; ``None`` where it is not known.
    """
    facts = check_model(name, revision=revision, trust_remote_code=trust_remote_code)
    base_hash = model_hash(name, revision, full=str(trained_on).startswith("sha256:"))
    if trained_on is not None and base_hash is not None and base_hash != trained_on:
        raise ConfigError(
            f"the weights of {name} are not those that the run was trained on ({trained_on} in its manifest, "
            f"{base_hash} now): what was trained belongs to another base",
            "name the model that it was trained on, or restore its files.",
        )
    return {
        "base": name,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "base_hash": base_hash,
        "context": facts.context,
        "embeddings": facts.embeddings,
    }


def _tuned(final: Path, adapter: bool) -> dict[str, Any]:
    """Return the fields of an origin that describe a folder of tuned weights."""
    return {
        "tuned_hash": weights_hash(_files(final, adapter), full=True),
        "final": final,
        "adapter": adapter,
        "switchable": adapter and _switchable(final),
    }


def _files(final: Path, adapter: bool) -> list[Path]:
    if not adapter:
        files = weight_files(final)
    else:
        if not (final / ADAPTER_CONFIG).is_file():
            raise ConfigError(f"{final} has no {ADAPTER_CONFIG}, so it holds no adapter", _RESTORE)
        files = [path for path in (final / "adapter_model.safetensors", final / "adapter_model.bin") if path.is_file()]
    if not files:
        raise ConfigError(f"{final} has no weights", _RESTORE)
    return files


def _switchable(final: Path) -> bool:
    from selfaug.reference.checks import check_peft

    check_kind(final)
    try:
        check_peft(peft_settings(final), "base")
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
    """The base and the tuned model of a run.

    Args:
        origin: Origin of both.
        dtype: Number format of the weights; ``auto`` for that of the base's files.
        together: Whether both stay in memory where they are two models.

    Raises:
        ConfigError: If a model cannot be loaded, or the adapter does not fit the base; raised on first use.
    """

    def __init__(self, origin: Origin, dtype: str = "auto", *, together: bool = False) -> None:
        self.origin, self.dtype, self.together = origin, dtype, together
        self._models: dict[str, PreTrainedModel] = {}  # by side, or "both" where the adapter is switched
        self._peft: Any = None  # PEFT's wrapper of the tuned model, where it has an adapter
        self._change: Callable[[Any], AbstractContextManager[None]] | None = None
        self.loads = 0

    def order(self) -> tuple[str, str]:
        """Return both sides, the one in memory first."""
        return ("tuned", "base") if "tuned" in self._models else ("base", "tuned")

    def holds(self, name: str) -> bool:
        """Return whether the model of a side is in memory."""
        return "both" in self._models or name in self._models

    @contextmanager
    def side(self, name: str) -> Iterator[PreTrainedModel]:
        """Yield the causal model of a side, without PEFT's wrapper and in evaluation mode; valid inside the block."""
        import torch

        from selfaug.model.switch import adapters_off

        wanted = "both" if self.origin.switchable else name
        if wanted not in self._models:
            if not self.together:
                self.release()
            self._models[wanted] = self._load(wanted)
        model = self._models[wanted]
        change: AbstractContextManager[None] = nullcontext()
        if name == "base" and wanted == "both":
            change = adapters_off(model)
        elif name == "tuned" and self._change is not None:
            change = self._change(self._peft)
        with torch.no_grad(), change:
            yield model

    @contextmanager
    def changed(self, tuned_hash: str, change: Callable[[Any], AbstractContextManager[None]]) -> Iterator[None]:
        """Let the tuned side be other weights inside the block: the adapter's own under a change.

        Args:
            tuned_hash: Hash of what decides these weights.
            change: Function from PEFT's wrapper of the tuned model to a context in which it is changed.
        """
        own = self.origin, self._change
        self.origin, self._change = replace(self.origin, tuned_hash=tuned_hash), change
        try:
            yield
        finally:
            self.origin, self._change = own

    def reference(self) -> Reference:
        """Return the reference that computes the base's hidden states beside the tuned model; needs ``together``."""
        from selfaug.reference.adapter import BaseReference
        from selfaug.reference.frozen import FrozenReference

        if self.origin.switchable:
            return BaseReference()
        assert self.together
        with self.side("tuned") as model, self.side("base") as base:
            return FrozenReference(self.origin.base, model, loaded=base)

    def move(self, origin: Origin) -> None:
        """Replace the tuned weights; the base stays in memory.

        Args:
            origin: Origin of the new weights, from :meth:`Origin.at` of the present one.
        """
        switched = self.origin.switchable and origin.switchable
        self.origin = origin
        if not switched:
            # Loading such an adapter rewrites the base's weights, and the next one needs the original ones.
            self._models = {side: model for side, model in self._models.items() if side == "base"}
            self._peft = None
        elif self._peft is not None:
            old = self._peft.active_adapter
            new = "default" if old == "next" else "next"
            with fitting(origin.final, origin.base):
                self._peft.load_adapter(str(origin.final), adapter_name=new)
            self._peft.set_adapter(new)
            self._peft.delete_adapter(old)
            self._peft.eval()

    def fold(self) -> PreTrainedModel:
        """Return the tuned model with its adapter folded into its weights, and release it here.

        A head tied to the embedding gets its own weight where only one of the two is adapted.

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
            _untie(model)
        try:
            # PEFT warns that the head is no longer tied to the embedding, which is intended.
            with unwarned(".*(tie_word_embeddings|tied)"):
                folded: PreTrainedModel = self._peft.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"the adapter in {self.origin.final} cannot be folded into its base model: {first_words(error)}",
                "serve the base model with the adapter as it is.",
            ) from error
        self.release()
        return folded

    def release(self) -> None:
        """Free the loaded models."""
        import torch

        if not self._models:
            return
        self._models, self._peft = {}, None
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
        base = self._causal(origin.base, origin.revision)
        before = probed(base) if origin.switchable else None
        with fitting(origin.final, origin.base):
            self._peft = load_adapter(base, origin.final).eval()
        if before is not None:
            check_switch(self._peft, before, str(origin.final))
        tuned: PreTrainedModel = self._peft.get_base_model()
        return tuned

    def _causal(self, name: str, revision: str) -> PreTrainedModel:
        import torch
        from safetensors import SafetensorError
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
        except (OSError, ValueError, RuntimeError, ImportError, LookupError, SafetensorError) as error:
            raise ConfigError(f"the model {name} cannot be loaded: {first_words(error)}", _RESTORE) from error
        return model.eval()


def _untie(model: PreTrainedModel) -> None:
    """Untie head and embedding where an adapter would be folded into their shared weight."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    plain = [part.get_base_layer() if isinstance(part, BaseTunerLayer) else part for part in (embedding, head)]
    weights = [getattr(part, "weight", None) for part in plain]
    if weights[0] is None or weights[0] is not weights[1] or plain == [embedding, head]:
        return
    plain[1].weight = torch.nn.Parameter(weights[1].detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def renderer_hash(final: Path) -> str | None:
    """Return the hash of the saved prompt settings, or ``None`` where there are none."""
    from selfaug.data.prompt_files import SETTINGS

    path = final / SETTINGS
    return file_hash(path) if path.is_file() else None
