"""How do sequences reach the plan: every layout of a micro-batch, and where each sequence lies in it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from selfaug.planning.plan import StepPlan, plan_step
from tests.oracles.step import IGNORED, Sequence_

LAYOUTS = (
    "right padding", "left padding", "padding-free", "padding-free, padded", "packed rows with a mask",
    "square mask", "square mask, additive",
)  # fmt: skip
PAD = 0


@dataclass(frozen=True)
class Laid:
    """A collated micro-batch, and for each sequence in it: which one it is and where its first token lies."""

    batch: dict[str, Any]
    at: dict[int, int]


def lay(sequences: Sequence[Sequence_], which: Sequence[int], layout: str) -> Laid:
    """Collate in the manner of TRL (all but left padding and packed rows, which other collators make)."""
    chosen = [sequences[i] for i in which]
    if layout in ("right padding", "left padding"):
        width = max(len(ids) for ids, _ in chosen)
        left = layout == "left padding"
        ids_BT, labels_BT, mask_BT = [], [], []
        for ids, labels in chosen:
            gap = width - len(ids)
            front, back = (gap, 0) if left else (0, gap)
            ids_BT.append([PAD] * front + ids + [PAD] * back)
            labels_BT.append([IGNORED] * front + labels + [IGNORED] * back)
            mask_BT.append([0] * front + [1] * len(ids) + [0] * back)
        at = {i: row * width + (width - len(sequences[i][0]) if left else 0) for row, i in enumerate(which)}
        batch = {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT}
        return Laid({name: torch.tensor(value) for name, value in batch.items()}, at)
    at = {}
    ids_T: list[int] = []
    labels_T: list[int] = []
    positions_T: list[int] = []
    for i, (ids, labels) in zip(which, chosen, strict=True):
        at[i] = len(ids_T)
        ids_T += ids
        labels_T += [IGNORED, *labels[1:]]  # TRL's collator: no position predicts a document's first token
        positions_T += range(len(ids))
    mask_T = [1] * len(ids_T)
    gap = -len(ids_T) % 8 if layout != "padding-free" else 0
    ids_T, labels_T = ids_T + [PAD] * gap, labels_T + [IGNORED] * gap
    batch = {"input_ids": [ids_T], "labels": [labels_T], "position_ids": [positions_T + [0] * gap]}
    if layout == "packed rows with a mask":
        batch["attention_mask"] = [mask_T + [0] * gap]
    if layout.startswith("square mask"):  # positions do not begin anew, so the mask alone tells documents
        batch["position_ids"] = [range(len(ids_T))]
        owner_T = [i for i, (ids, _) in zip(which, chosen, strict=True) for _ in ids] + [-1] * gap
        seen = [[a == b >= 0 and k <= q for k, b in enumerate(owner_T)] for q, a in enumerate(owner_T)]
        low = torch.finfo(torch.float32).min
        additive = layout.endswith("additive")
        batch["attention_mask"] = [[[[0.0 if s else low for s in row] for row in seen] if additive else seen]]
    return Laid({name: torch.tensor(value) for name, value in batch.items()}, at)


@st.composite
def steps(draw_: st.DrawFn) -> tuple[list[Sequence_], list[list[int]], str]:
    """Sequences of turns, a split of them into micro-batches, and a layout."""
    count = draw_(st.integers(1, 8))
    seed = draw_(st.randoms(use_true_random=False))
    made = []
    for _ in range(count):
        turns = [draw_(st.integers(1, 5)), *draw_(st.lists(st.integers(0, 4), max_size=4))]
        ids: list[int] = []
        labels: list[int] = []
        for turn, length in enumerate(turns):
            # Few different ids, so that equal sequences and ids equal to the padding's occur.
            tokens = [seed.randrange(7) for _ in range(length)]
            ids += tokens
            labels += tokens if turn % 2 else [IGNORED] * length
        made.append((ids, labels))
    order = draw_(st.permutations(range(count)))
    cuts = sorted(draw_(st.sets(st.integers(1, count - 1), max_size=3))) if count > 1 else []
    split = [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    return made, split, draw_(st.sampled_from(LAYOUTS))


def plan_of(
    sequences: Sequence[Sequence_], split: Sequence[Sequence[int]], layout: str, **options: Any
) -> tuple[StepPlan, list[Laid]]:
    laid = [lay(sequences, which, layout) for which in split]
    return plan_step([each.batch for each in laid], **{"seed": 3, "step": 5, **options}), laid


def placed(index_N: torch.Tensor, laid: Laid, sequences: Sequence[Sequence_]) -> dict[int, list[int]]:
    """Flattened positions as (sequence → positions in it); a position outside every sequence is an error."""
    found: dict[int, list[int]] = {}
    for n in index_N.tolist():
        owners = [i for i, start in laid.at.items() if start <= n < start + len(sequences[i][0])]
        assert len(owners) == 1, f"position {n} is padding"
        found.setdefault(owners[0], []).append(n - laid.at[owners[0]])
    return found


def prefixes(inputs: dict[str, Any] | Any) -> list[tuple[int, ...]]:
    """For each flattened position, the tokens that a causal model sees there."""
    seen: list[tuple[int, ...]] = []
    rows = inputs["input_ids"].tolist()
    if "attention_mask" in inputs and inputs["attention_mask"].dim() == 4:
        masks = inputs["attention_mask"][:, 0]
        visible = (masks if masks.dtype == torch.bool else masks == 0).tolist()
        return [
            tuple(token for token, is_seen in zip(row, sees, strict=True) if is_seen)
            for row, square in zip(rows, visible, strict=True)
            for sees in square
        ]
    restart = inputs["position_ids"].tolist() if "position_ids" in inputs else [range(len(row)) for row in rows]
    mask = inputs["attention_mask"].tolist() if "attention_mask" in inputs else [[1] * len(row) for row in rows]
    for row, at, real in zip(rows, restart, mask, strict=True):
        current: tuple[int, ...] = ()
        for token, position, is_real in zip(row, at, real, strict=True):
            current = () if position == 0 else current
            current = (*current, token) if is_real else current
            assert position == len(current) - 1 or not is_real
            seen.append(current)
    return seen
