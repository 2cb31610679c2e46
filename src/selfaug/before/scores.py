"""The base model's score of each response token, from one pass over the training rows before the first step.

Scores are looked up by a hash of a row's tokens, and so are independent of collation, packing and the split over ranks.

Shapes: B rows of a batch, T tokens of a row, N selected positions, H hidden.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selfaug.common.errors import DataError
from selfaug.common.store import keep_tensors, kept_tensors
from selfaug.model.parts import body_of, head_of
from selfaug.objective import NLL
from selfaug.objective.values import row_values
from selfaug.reference import Reference

__all__ = ["FILE", "BaseScores", "PaddedBatch", "padded_batches", "response_places", "score_rows"]

FILE = "base_scores.safetensors"
_IGNORED = -100


class BaseScores:
    """The base's NLL (nats) of each response token of each row, by the row's tokens.

    Args:
        made_by: Facts that the scores depend on besides the tokens: digest of the base's weights, and number formats.
    """

    def __init__(self, made_by: Mapping[str, str]) -> None:
        self.made_by = dict(made_by)
        self._nll_T: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._nll_T)

    def add(self, input_ids: Sequence[int] | Tensor, nll_T: Tensor) -> None:
        """Add the scores of a row: float32, NaN for tokens outside of responses."""
        key = _key(input_ids)
        known = self._nll_T.get(key)
        self._nll_T[key] = nll_T if known is None else torch.where(nll_T.isnan(), known, nll_T)

    def has(self, input_ids: Sequence[int], labels: Sequence[int]) -> bool:
        """Return whether every response token of the row has a score."""
        known = self._nll_T.get(_key(input_ids))
        return known is not None and not bool(known[response_places(labels)].isnan().any())

    def of(self, input_ids: Sequence[int] | Tensor, token_N: Tensor) -> Tensor:
        """Return the scores of some tokens of a row (N).

        Raises:
            DataError: If the row, or one of the tokens, was not scored.
        """
        known = self._nll_T.get(_key(input_ids))
        nll_N = None if known is None else known[token_N]
        if nll_N is None or bool(nll_N.isnan().any()):
            raise DataError(
                "a batch holds a document that is no row of the training data set, so the base has not scored it.",
                "leave the batches as the trainer makes them: a collator of your own may not cut or join rows.",
            )
        return nll_N

    def save(self, path: Path) -> None:
        """Write all scores into one file.

        Raises:
            DiskError: If the file cannot be written.
        """
        parts = {
            "nll": torch.cat([*self._nll_T.values(), torch.zeros(0)]),
            "lengths": torch.tensor([len(nll_T) for nll_T in self._nll_T.values()], dtype=torch.int64),
        }
        # Runs that share a cache may write at the same time.
        keep_tensors(path, parts, self.made_by, {"keys": json.dumps(list(self._nll_T))}, shared=True)

    @classmethod
    def load(cls, path: Path, made_by: Mapping[str, str]) -> BaseScores:
        """Return the scores in a file if the same base made them; otherwise none."""
        scores = cls(made_by)
        kept = kept_tensors(path, scores.made_by)
        if kept is not None:
            tensors, notes = kept
            parts = tensors["nll"].split(tensors["lengths"].tolist())
            scores._nll_T = dict(zip(json.loads(notes["keys"]), parts, strict=True))
        return scores


class PaddedBatch(NamedTuple):
    """Rows of one pass, padded behind their ends, and the positions that predict their response tokens.

    Args:
        input_ids: Tokens of each row.
        targets: Positions of the response tokens of each row.
        ids_BT: Token ids.
        mask_BT: Attention mask.
        index_N: Predicting positions in the flattened batch, row by row.
        label_N: Tokens that they predict.
    """

    input_ids: list[list[int]]
    targets: list[Tensor]
    ids_BT: Tensor
    mask_BT: Tensor
    index_N: Tensor
    label_N: Tensor

    def hidden(self, model: nn.Module) -> Tensor:
        """Return the model's final hidden states at the predicting positions (N × H)."""
        outputs = body_of(model)(input_ids=self.ids_BT, attention_mask=self.mask_BT, use_cache=False)
        hidden_NH: Tensor = outputs.last_hidden_state.flatten(0, 1)[self.index_N]
        return hidden_NH

    def split(self, values_N: Tensor) -> tuple[Tensor, ...]:
        """Return the values of each row, on the CPU."""
        parts: tuple[Tensor, ...] = values_N.cpu().split([len(target) for target in self.targets])
        return parts


def padded_batches(rows: Iterable[Mapping[str, Any]], batch_tokens: int, device: torch.device) -> Iterator[PaddedBatch]:
    """Yield batches of rows of similar length, the longest first.

    Args:
        rows: Rows with ``input_ids`` and ``labels``.
        batch_tokens: Largest number of tokens of a batch, padding included; a batch has at least one row.
        device: Device of the tensors.
    """
    pending = sorted(((list(r["input_ids"]), list(r["labels"])) for r in rows), key=lambda row: len(row[0]))
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
        tensors = (tensor.to(device) for tensor in (ids_BT, mask_BT, index_N, label_N))
        yield PaddedBatch([ids for ids, _ in batch], targets, *tensors)


@torch.no_grad()
def score_rows(
    model: nn.Module,
    base: Reference,
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[list[int], Tensor]]:
    """Return the ``input_ids`` of each row, and the base's NLL of its response tokens (T, float32, NaN elsewhere).

    Args:
        model: Causal LM inside all wrappers.
        base: Reference that returns the base's hidden states and head.
        rows: Rows with ``input_ids`` and ``labels``.
        batch_tokens: Largest number of tokens in a pass, padding included; a pass has at least one row.
        progress: Function called with the number of rows done.
    """
    scored: list[tuple[list[int], Tensor]] = []
    for batch in padded_batches(rows, batch_tokens, next(model.parameters()).device):
        with base.serving(model) as serving:
            hidden_NH = batch.hidden(serving)
        head = base.head(model) or head_of(model)
        nll_N = row_values(hidden_NH, head, (NLL(),), label_N=batch.label_N)["nll"]
        for ids, target, nll_n in zip(batch.input_ids, batch.targets, batch.split(nll_N.float()), strict=True):
            nll_T = torch.full((len(ids),), math.nan)
            nll_T[target] = nll_n
            scored.append((ids, nll_T))
        if progress is not None:
            progress(len(scored))
    return scored


def response_places(labels: Sequence[int]) -> Tensor:
    """Return the positions of the tokens that are learnt, without a row's first token, which nothing predicts."""
    return (
        (torch.tensor(labels[1:]) != _IGNORED).nonzero().squeeze(-1) + 1
        if len(labels) > 1
        else torch.zeros(0, dtype=torch.int64)
    )


def _key(input_ids: Sequence[int] | Tensor) -> str:
    ids = torch.as_tensor(input_ids, dtype=torch.int64).cpu().contiguous()
    return hashlib.blake2b(ids.numpy().tobytes(), digest_size=16).hexdigest()
