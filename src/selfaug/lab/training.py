"""The training of the lab's models: AdamW on weighted next tokens, with bit-exact resumption.

Shapes: B conversations, T tokens, V vocabulary, N = B · (T - 1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it
from torch import Tensor

from selfaug.common.files import replacing
from selfaug.lab.batches import Order, batches
from selfaug.lab.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    from selfaug.lab.making import Making

__all__ = ["Training", "loss_of"]

_LOG_EVERY = 50


def loss_of(model: Qwen2ForCausalLM, ids_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """``Σ weight · nll / Σ weight`` over next tokens; padding at the end needs no mask in a causal model."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    nll_N = F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten(), reduction="none")
    weights_N = weights_BT[:, 1:].flatten()
    return (nll_N * weights_N).sum() / weights_N.sum()


@dataclass(frozen=True)
class Training:
    """One training of a model, resumed from ``state_file`` if it exists.

    Args:
        model: Model on its device.
        tokenizer: Tokenizer of the model.
        world: World that the model learns.
        making: Settings that determine the weights.
        state_file: File of the last checkpoint.
        checkpoint_every: Number of steps between checkpoints.
        probe_every: Number of steps between tests of the skills; 0 for none.
    """

    model: Qwen2ForCausalLM
    tokenizer: PreTrainedTokenizerFast
    world: World
    making: Making
    state_file: Path
    checkpoint_every: int
    probe_every: int

    def run(self, workers: int, log: Callable[[dict[str, Any]], None], progress: Callable[[int], None]) -> None:
        """Train from the last checkpoint, or from the first step, to the last step.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        model, making, device = self.model, self.making, self.model.device
        optimizer = self._optimizer()
        first = self._resume(optimizer)
        model.train()
        pad, tokenizer = int(self.tokenizer.pad_token_id), self.tokenizer.backend_tokenizer
        order = Order(making.steps, making.tokens, self.world, tokenizer, pad, making.seed)
        began, read = time.perf_counter(), 0
        for step, batch in enumerate(batches(order, first, workers), start=first):
            for group in optimizer.param_groups:
                group["lr"] = making.rate(step)
            ids_BT, weights_BT = (tensor.to(device, non_blocking=True) for tensor in batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=making.precision == "bfloat16"):
                loss = loss_of(model, ids_BT, weights_BT)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            read += ids_BT.numel()
            done = step + 1
            saves = done % self.checkpoint_every == 0 or done == making.steps
            if done % _LOG_EVERY == 0 or saves:
                # Read only here, since reading a number from a GPU waits for it.
                if not math.isfinite(loss.item()):
                    raise FloatingPointError(f"the loss of step {step} is {loss.item()}")
                seconds = time.perf_counter() - began
                rate = round(read / seconds)
                entry = {"step": done, "loss": round(loss.item(), 4), "seconds": round(seconds, 1)}
                log({**entry, "tokens_per_second": rate})
            if self.probe_every and done % self.probe_every == 0:
                log({"step": done, **self._probe()})
            progress(done)
            if saves:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                with replacing(self.state_file) as temporary:
                    torch.save(state, temporary)

    def _optimizer(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": 0.05},
            {"params": [p for p in self.model.parameters() if p.ndim < 2]},
        ]
        fused = self.model.device.type == "cuda"
        return torch.optim.AdamW(groups, lr=self.making.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        if not self.state_file.exists():
            return 0
        state = torch.load(self.state_file, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def _probe(self) -> dict[str, float]:
        from selfaug.lab.probe import share_right
        from selfaug.lab.skills import SKILLS, items

        self.model.eval()
        shares = {
            skill: share_right(self.model, self.tokenizer, items(skill, "test", 100, self.world)) for skill in SKILLS
        }
        self.model.train()
        return shares
