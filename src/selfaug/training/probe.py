"""The probe of general ability while training: KL(base ‖ tuned) on the base's own answers, its limit, and the way back.

Measuring changes nothing: no weight, no optimiser state, no random state, no module's mode.

Shapes: N answer tokens, H hidden, n items, b resamples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback

from selfaug.before.probe_rows import probe_path
from selfaug.before.scores import padded_batches
from selfaug.common.errors import ConfigError
from selfaug.common.statistics import Items, interval, ratios, value
from selfaug.common.terminal import is_main, say
from selfaug.data.files import data_files
from selfaug.model.parts import head_of
from selfaug.model.switch import evaluating, uncached_autocast
from selfaug.objective import BaseToTuned
from selfaug.objective.values import row_values
from selfaug.run.checkpoint import numbered, step_of, torn_because

if TYPE_CHECKING:
    from torch import nn

    from selfaug.reference import Reference
    from selfaug.training.config import SelfAugConfig

__all__ = ["Probe", "check_probe", "check_probe_base", "kl_rows", "random_state_kept", "summary"]

_RESAMPLES = 2000
_BATCH_TOKENS = 8192


def check_probe(config: SelfAugConfig) -> None:
    """Check the settings of the probe against each other.

    Raises:
        ConfigError: If they cannot be meant.
    """
    if config.probe is None:
        for name in ("probe_steps", "probe_limit"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(config, name)} has no effect without probe: nothing is measured while training.",
                    f"add --probe general (or a file of prompts), or leave {name} out.",
                )
        if config.probe_action != "stop":
            raise ConfigError(
                f"probe_action={config.probe_action!r} has no effect without probe and probe_limit.",
                "add --probe general --probe_limit 0.1, or leave probe_action out.",
            )
        return
    path = probe_path(config.probe)
    if path is not None:
        data_files(path)
    if config.probe_steps is not None and config.probe_steps < 1:
        raise ConfigError(
            f"probe_steps={config.probe_steps} is no number of steps.", "give 1 or more, or leave it out."
        )
    limit = config.probe_limit
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        raise ConfigError(
            f"probe_limit={limit} is no largest KL: the base itself is at 0, and every training moves the model.",
            "give nats a token above 0, such as 0.1.",
        )
    if config.probe_action not in ("stop", "restore"):
        raise ConfigError(f"probe_action={config.probe_action!r} is not known.", "choose 'stop' or 'restore'.")
    if config.probe_action == "restore":
        if limit is None:
            raise ConfigError(
                "probe_action='restore' goes back to the last checkpoint within probe_limit, and there is no limit.",
                "add --probe_limit 0.1, or leave probe_action out.",
            )
        if config.load_best_model_at_end or str(getattr(config.save_strategy, "value", config.save_strategy)) == "best":
            raise ConfigError(
                "probe_action='restore' and load_best_model_at_end (or save_strategy='best') both say which "
                "checkpoint the finished weights are taken from.",
                "leave one of them out.",
            )
    if config.reference == "initial" or config.changes.start is not None:
        raise ConfigError(
            f"probe={config.probe!r} compares with the model with its adapter off, and with reference='initial' or an "
            "adapter that starts from a part of the weights that is not the base.",
            "leave --probe out, or use --reference base and a fresh adapter.",
        )


def check_probe_base(config: SelfAugConfig, *, adapted: bool) -> None:
    """Check that there is a base to compare with.

    Raises:
        ConfigError: In full fine-tuning without a reference model.
    """
    if config.probe is None or adapted or (config.compares and config.reference not in ("base", "initial")):
        return
    raise ConfigError(
        f"probe={config.probe!r} compares with the base, and full fine-tuning holds none in memory here.",
        "train an adapter (--use_peft true), align to a reference model (--reference PATH), or leave --probe out.",
    )


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random states of Python, numpy and torch (processor and current device) at the end of the block."""
    python, numpy_state = random.getstate(), np.random.get_state()
    # Of other ranks' devices torch would begin to use memory.
    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


@torch.no_grad()
def kl_rows(
    model: nn.Module, base: Reference, rows: Sequence[Mapping[str, Any]], *, single_rows: bool = False
) -> list[tuple[float, int]]:
    """``Σ_t KL(base(· | tokens before t) ‖ tuned(· | tokens before t))`` over the answer tokens t of each row, and N.

    Args:
        model: Tuned causal LM inside all wrappers; each module's mode is restored.
        base: Reference that returns the base's hidden states and head.
        rows: Rows with ``input_ids`` and ``labels``, each with an answer token.
        single_rows: Whether rows must pass one at a time.

    Returns:
        Sum in nats and number of answer tokens of each row, in the order of the rows.
    """
    found: dict[tuple[int, ...], tuple[float, int]] = {}
    device = next(model.parameters()).device
    for batch in padded_batches(rows, 0 if single_rows else _BATCH_TOKENS, device):
        with base.serving(model) as serving:
            reference_NH = batch.hidden(serving)
        with uncached_autocast(), evaluating(model):
            hidden_NH = batch.hidden(model)
        term = BaseToTuned()
        values = row_values(
            hidden_NH, head_of(model), (term,), reference_NH=reference_NH, reference_head=base.head(model)
        )
        for ids, kl_n in zip(batch.input_ids, batch.split(values[term.name].double()), strict=True):
            found[tuple(ids)] = float(kl_n.sum()), len(kl_n)
    return [found[tuple(row["input_ids"])] for row in rows]


def summary(sums: Sequence[tuple[float, int]]) -> dict[str, float]:
    """``Σ kl / Σ tokens`` over items as ``probe_kl``, with its 95 % interval: a bootstrap over items, of fixed seed."""
    items = Items.of(sums)
    logs = {"probe_kl": value(items) or 0.0}
    n = len(sums)
    bounds = interval(ratios(items, np.random.default_rng(0).integers(n, size=(_RESAMPLES, n)))) if n > 1 else None
    if bounds is not None:
        logs["probe_kl_low"], logs["probe_kl_high"] = bounds
    return logs


class Probe(TrainerCallback):
    """Measures before the first step, every ``probe_steps`` and at the end, and ends the training beyond the limit.

    The history is the trainer's own log, which its checkpoints hold.

    Args:
        config: Settings of the run.
        measure: Function that returns sum and number of tokens of every item, on every rank.
        log: Function that logs numbers.

    Attributes:
        broken: Step and KL that broke the limit; ``None`` while it holds.
    """

    def __init__(
        self,
        config: SelfAugConfig,
        measure: Callable[[], Sequence[tuple[float, int]]],
        log: Callable[[dict[str, float]], None],
    ) -> None:
        self._config, self._measure, self._log = config, measure, log
        self.broken: tuple[int, float] | None = None
        self._last = -1

    @property
    def restores(self) -> bool:
        """Whether the run goes back to an earlier checkpoint where the limit is broken."""
        return self._config.probe_action == "restore"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """End at once where the resumed checkpoint is beyond the limit: the run was killed as it ended."""
        limit = self._config.probe_limit
        last = next((entry for entry in reversed(state.log_history) if "probe_kl" in entry), {"step": -1})
        if limit is not None and last["step"] == state.global_step > 0 and not last["probe_kl"] <= limit:
            self._break(state, control, last["probe_kl"], limit)
        return control

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure before the first step.

        Raises:
            ConfigError: If the limit is broken already.
        """
        if state.global_step:
            return
        kl, limit = self._look(state, control), self._config.probe_limit
        if limit is not None and kl > limit:
            raise ConfigError(
                f"probe_limit={limit} is broken before the first step: the model is {kl:.4g} nats a token from its "
                "base, as an adapter that has been trained before.",
                "raise --probe_limit, or begin with a fresh adapter.",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Measure where it is time, and after the last step."""
        every = self._config.probe_steps
        due = control.should_evaluate or control.should_save if every is None else state.global_step % every == 0
        return self._react(state, control) if due or state.global_step >= state.max_steps else control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Measure where the epoch's end is evaluated or saved."""
        due = self._config.probe_steps is None and (control.should_evaluate or control.should_save)
        return self._react(state, control) if due else control

    def _react(self, state: Any, control: Any) -> Any:
        if state.global_step == self._last:
            return control
        kl, limit = self._look(state, control), self._config.probe_limit
        if limit is None:
            return control
        if kl <= limit:
            control.should_save |= self.restores
            return control
        control.should_save |= not self.restores
        self._break(state, control, kl, limit)
        return control

    def _break(self, state: Any, control: Any, kl: float, limit: float) -> None:
        self.broken = state.global_step, kl
        control.should_training_stop = True
        if is_main():
            say(f"probe_limit {limit:g} is broken after step {state.global_step}: {kl:.4g} nats a token from the base.")

    def _look(self, state: Any, control: Any) -> float:
        self._last = state.global_step
        with random_state_kept():
            logs = summary(self._measure())
        kl = logs["probe_kl"]
        should_log = control.should_log
        self._log(logs)
        control.should_log = should_log  # a log resets it, and the step's own is still to come
        return kl

    def within(self, log_history: Sequence[Mapping[str, Any]]) -> set[int]:
        """Return the steps that the run may go back to, if it does so at all."""
        limit = self._config.probe_limit
        if limit is None or not self.restores:
            return set()
        return {entry["step"] for entry in log_history if entry.get("probe_kl", math.inf) <= limit}

    def best(self, log_history: Sequence[Mapping[str, Any]], output_dir: Path) -> Path | None:
        """Return the last whole checkpoint at which a probe was within the limit; ``None`` for none."""
        within = self.within(log_history)
        folders = (folder for folder in numbered(output_dir) if step_of(folder) in within)
        return next((folder for folder in folders if torn_because(folder) is None), None)
