"""The two models that a shift measurement compares, base and tuned, from one loaded model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError, UserError
from selfaug.common.terminal import say
from selfaug.run.checkpoint import torn_because

if TYPE_CHECKING:
    from torch import nn

    from selfaug.reference import Reference
    from selfaug.run.folder import RunFolder

__all__ = ["Pair", "State", "states"]

_ADAPTER = "measured"


@dataclass(frozen=True)
class State:
    """The run's weights at one time: a checkpoint, or the finished ones (``name`` is ``final``)."""

    name: str
    step: int | None
    folder: Path


def states(run: RunFolder, *, every: bool) -> list[State]:
    """The finished weights, and before them with ``every`` each whole checkpoint; torn ones are named on stderr."""
    final = run.finished
    assert final is not None
    found: list[State] = []
    for folder in run.checkpoints.glob("checkpoint-*") if every else ():
        number = folder.name.removeprefix("checkpoint-")
        if not number.isdigit():
            continue
        reason = torn_because(folder)
        if reason is None:
            found.append(State(folder.name, int(number), folder))
        else:
            say(f"{folder} is not a whole checkpoint ({reason}) and is left out.")
    try:
        step = json.loads(run.manifest.read_text(encoding="utf-8"))["finished"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        step = None
    return [*sorted(found, key=lambda state: state.step or 0), State("final", step, final)]


class Pair:
    """A run's base and tuned model.

    With an adapter the model is loaded once: the base is it with the adapter off. An adapter whose base does not come
    back so (one that rewrote base weights as it began, or trains biases) gets a second copy, as do models that were
    trained as a whole.

    Args:
        run: A finished run.
        dtype: ``auto`` for that of the base's files.

    Raises:
        ConfigError: If the base model is missing, or is not the one that was trained on.
    """

    def __init__(self, run: RunFolder, dtype: str = "auto") -> None:
        from selfaug.run.manifest import read_manifest, weight_files, weights_hash
        from selfaug.run.model_source import check_model, model_folder

        config = run.read_config()
        self.run = run
        self.name = str(config.get("model_name_or_path"))
        revision, trust = str(config.get("model_revision") or "main"), bool(config.get("trust_remote_code"))
        check_model(self.name, revision=revision, trust_remote_code=trust)
        self._options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust, "dtype": dtype}
        self._quantization = _quantization(config)
        folder = model_folder(self.name, revision)
        written = read_manifest(run.manifest)["model"].get("weights") if run.manifest.is_file() else None
        files = weight_files(folder) if folder is not None else []
        self.base_hash = weights_hash(files, full=str(written).startswith("sha256:")) if files else None
        if written is not None and self.base_hash is not None and written != self.base_hash:
            raise ConfigError(
                f"the weights of {self.name} are not those that the run in {run.path} was trained on ({written} then, "
                f"{self.base_hash} now): the shift would be that between two base models",
                "restore the model's files, or train anew.",
            )
        self._peft: Any = None

    def load(self, state: State) -> tuple[nn.Module, Reference]:
        """The tuned model at ``state`` (without PEFT's wrapper), and what gives its base.

        Raises:
            ConfigError: If the weights do not fit the base model, or are of a kind that cannot be compared.
        """
        from safetensors import SafetensorError

        from selfaug.reference.frozen import FrozenReference

        try:
            if (state.folder / "adapter_config.json").is_file():
                return self._adapted(state)
            model = self._model(str(state.folder), {**self._options, "revision": "main"})
            return model, FrozenReference(self.name, model, **self._options)
        except UserError:
            raise
        except (RuntimeError, OSError, LookupError, ValueError, SafetensorError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"the weights in {state.folder} do not fit the base model {self.name}: {first}",
                "restore the files of the run or of its base model, or train anew.",
            ) from error

    def _adapted(self, state: State) -> tuple[nn.Module, Reference]:
        from peft import PeftConfig, PeftModel

        from selfaug.reference.adapter import BaseReference
        from selfaug.reference.checks import check_peft
        from selfaug.reference.frozen import FrozenReference

        config = PeftConfig.from_pretrained(str(state.folder))
        check_peft(config, "path")
        try:
            check_peft(config, "base")
            switched = True
        except ConfigError:
            switched = False
        if self._peft is None or not switched:
            # Where loading an adapter rewrites the base's weights, the next one needs them as they were.
            model = self._model(self.name, self._options)
            self._peft = PeftModel.from_pretrained(model, str(state.folder), adapter_name=_ADAPTER).eval()
        else:
            old = self._peft.active_adapter
            self._peft.load_adapter(str(state.folder), adapter_name=state.name)
            self._peft.set_adapter(state.name)
            self._peft.delete_adapter(old)
            self._peft.eval()
        model = self._peft.get_base_model()
        return model, BaseReference() if switched else FrozenReference(self.name, model, **self._options)

    def _model(self, name: str, options: dict[str, Any]) -> nn.Module:
        import torch
        from transformers import AutoModelForCausalLM

        where: dict[str, Any] = {}
        if torch.accelerator.is_available():
            where["device_map"] = "auto" if torch.accelerator.device_count() > 1 else {"": 0}
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            name, quantization_config=self._quantization, **where, **options
        )
        return model.eval()


def _quantization(config: dict[str, Any]) -> Any:
    """How the base was quantised as it was trained on, or ``None``: the adapter was made for that base."""
    from trl import ModelConfig, get_quantization_config

    names = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "dtype")
    return get_quantization_config(ModelConfig(**{n: config[n] for n in names if config.get(n) is not None}))
