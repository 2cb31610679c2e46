"""The base model's score of each response token, from one pass over the training rows before the first step.

Scores are found again by a hash of a row's tokens, so they follow it through any collation, packing
or split over ranks.

Shapes: T tokens of a row, N selected positions, H hidden.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfaug.common.errors import DataError
from selfaug.common.store import keep_tensors, kept_tensors
from selfaug.model.parts import body_of, head_of
from selfaug.objective import NLL
from selfaug.objective.values import row_values
from selfaug.reference import Reference

__all__ = ["FILE", "BaseScores", "response_places", "score_rows"]

FILE = "base_scores.safetensors"
_IGNORED = -100


class BaseScores:
    """The base's NLL (nats) of each response token of each row, by the row's tokens.

    Args:
        made_by: What the scores depend on besides the tokens: digest of the base's weights, and their dtype.
    """

    def __init__(self, made_by: Mapping[str, str]) -> None:
        self.made_by = dict(made_by)
        self._nll_T: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._nll_T)

    def add(self, input_ids: Sequence[int] | Tensor, nll_T: Tensor) -> None:
        """Take the scores of a row: float32, NaN where a token is no response token."""
        key = _key(input_ids)
        known = self._nll_T.get(key)
        self._nll_T[key] = nll_T if known is None else torch.where(nll_T.isnan(), known, nll_T)

    def has(self, input_ids: Sequence[int], labels: Sequence[int]) -> bool:
        """Whether every response token of the row has a score."""
        known = self._nll_T.get(_key(input_ids))
        return known is not None and not bool(known[response_places(labels)].isnan().any())

    def of(self, input_ids: Sequence[int] | Tensor, token_N: Tensor) -> Tensor:
        """The scores of some tokens of a row (N).

        Raises:
            DataError: If the row, or one of the tokens, was not scored.
        """
        known = self._nll_T.get(_key(input_ids))
        found_N = None if known is None else known[token_N]
        if found_N is None or bool(found_N.isnan().any()):
            raise DataError(
                "a batch holds a document that is no row of the training data set, so the base has not scored it.",
                "leave the batches as the trainer makes them: a collator of your own may not cut or join rows.",
            )
        return found_N

    def save(self, path: Path) -> None:
        """Write everything into one file.

        Raises:
            DiskError: If it cannot be written.
        """
        parts = {
            "nll": torch.cat([*self._nll_T.values(), torch.zeros(0)]),
            "lengths": torch.tensor([len(nll_T) for nll_T in self._nll_T.values()], dtype=torch.int64),
        }
        # Runs that share a cache may write at the same time.
        keep_tensors(path, parts, self.made_by, {"keys": json.dumps(list(self._nll_T))}, shared=True)

    @classmethod
    def load(cls, path: Path, made_by: Mapping[str, str]) -> BaseScores:
        """What the file holds, if the same base made it; else nothing."""
        scores = cls(made_by)
        kept = kept_tensors(path, scores.made_by)
        if kept is not None:
            tensors, notes = kept
            parts = tensors["nll"].split(tensors["lengths"].tolist())
            scores._nll_T = dict(zip(json.loads(notes["keys"]), parts, strict=True))
        return scores


@torch.no_grad()
def score_rows(
    model: nn.Module,
    base: Reference,
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[list[int], Tensor]]:
    """For each row its ``input_ids`` and the base's NLL of its response tokens (T, float32, NaN elsewhere).

    Args:
        model: The causal LM inside all wrappers.
        base: Gives the base's hidden states and head.
        rows: ``input_ids`` and ``labels`` each.
        batch_tokens: Bound on padded tokens of one pass; at least one row is taken.
        progress: Called with the number of rows done.
    """
    pending = sorted(((list(r["input_ids"]), list(r["labels"])) for r in rows), key=lambda row: len(row[0]))
    device = next(model.parameters()).device
    found: list[tuple[list[int], Tensor]] = []
    while pending:
        longest = len(pending[-1][0])
        count = min(len(pending), max(1, batch_tokens // max(longest, 1)))
        batch, pending = pending[-count:], pending[:-count]
        ids_BT = torch.zeros(count, longest, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, (ids, _) in enumerate(batch):
            ids_BT[row, : len(ids)], mask_BT[row, : len(ids)] = torch.tensor(ids), 1
        targets = [response_places(labels) for _, labels in batch]
        index_N = torch.cat([row * longest + target - 1 for row, target in enumerate(targets)])
        label_N = torch.cat([torch.tensor(labels)[target] for (_, labels), target in zip(batch, targets, strict=True)])
        with base.serving(model) as serving:
            outputs = body_of(serving)(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False)
        hidden_TH = outputs.last_hidden_state.reshape(count * longest, -1)
        head = base.head(model) or head_of(model)
        nll_N = row_values(hidden_TH[index_N.to(device)], head, (NLL(),), label_N=label_N.to(device))["nll"]
        for (ids, _), target, nll_n in zip(
            batch, targets, nll_N.float().cpu().split([len(t) for t in targets]), strict=True
        ):
            nll_T = torch.full((len(ids),), math.nan)
            nll_T[target] = nll_n
            found.append((ids, nll_T))
        if progress is not None:
            progress(len(found))
    return found


def response_places(labels: Sequence[int]) -> Tensor:
    """Places of the tokens that are learnt; nothing predicts the first token of a row."""
    return (
        (torch.tensor(labels[1:]) != _IGNORED).nonzero().squeeze(-1) + 1
        if len(labels) > 1
        else torch.zeros(0, dtype=torch.int64)
    )


def _key(input_ids: Sequence[int] | Tensor) -> str:
    ids = torch.as_tensor(input_ids, dtype=torch.int64).cpu().contiguous()
    return hashlib.blake2b(ids.numpy().tobytes(), digest_size=16).hexdigest()
