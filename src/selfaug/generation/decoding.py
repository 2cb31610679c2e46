"""Greedy decoding in batches, and the NLL of given continuations.

Both take a causal model and token ids, batch rows of similar length, and return results in the order of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from selfaug.model.parts import body_of, head_of
from selfaug.objective import NLL
from selfaug.objective.values import row_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["continuation_nll", "greedy", "in_batches", "pad_id", "stop_ids", "without_stop"]

Progress = Callable[[int], None]


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> list[int]:
    """Return the ids that end an answer: EOS of model and tokenizer, and the template's end of turn if one token."""
    from selfaug.data.tokens import text_ids

    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    stops = set(configured if isinstance(configured, list) else [configured])
    stops.add(tokenizer.eos_token_id)
    turn = text_ids(tokenizer, renderer.end_of_turn.strip()) if renderer.end_of_turn.strip() else []
    stops.update(turn if len(turn) == 1 else ())
    return sorted(stop for stop in stops if stop is not None)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token, or that of EOS where the tokenizer has none."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(pad or 0)


def without_stop(ids: Sequence[int], stops: Sequence[int]) -> tuple[list[int], bool]:
    """Return an answer's ids without the stop token at their end, and whether there was one.

    Decoding without special tokens would not do: not every template's end of turn is a special token.
    """
    ended = bool(ids) and ids[-1] in stops
    return list(ids[: len(ids) - ended]), ended


def greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[int],
    pad: int,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Return the greedy answer to each prompt, up to and including a stop token, or of ``max_new_tokens`` tokens.

    The model's own generation settings, penalties included, are ignored, so that base and tuned model are comparable.

    Args:
        model: Model in evaluation mode.
        prompts: Token ids of each prompt.
        stops: Ids that end an answer.
        pad: Id of the padding, left of the prompts.
        max_new_tokens: Longest answer in tokens.
        batch_size: Number of prompts in a batch.
        progress: Function called with the number of prompts done.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0
    for batch in in_batches(model, prompts, stops=stops, pad=pad, max_new_tokens=max_new_tokens, batch_size=batch_size):
        for i, answer in batch.items():
            answers[i] = answer
        done += len(batch)
        if progress is not None:
            progress(done)
    return answers


def in_batches(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[int],
    pad: int,
    max_new_tokens: int,
    batch_size: int,
    context: int | None = None,
    change: Callable[[list[int]], Any] | None = None,
) -> Iterator[dict[int, list[int]]]:
    """Yield the answers of each batch by the indices of their prompts; greedy unless ``change`` alters the scores.

    Args:
        model: Model in evaluation mode.
        prompts: Token ids of each prompt.
        stops: Ids that end an answer.
        pad: Id of the padding, left of the prompts.
        max_new_tokens: Longest answer in tokens.
        batch_size: Number of prompts in a batch.
        context: Longest sequence of the model in tokens, which limits prompt and answer; ``None`` for no limit.
        change: Function from the indices of a batch's prompts to a ``LogitsProcessor`` for its rows.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    own = model.generation_config
    device = model.get_input_embeddings().weight.device
    for places in _batches([len(prompt) for prompt in prompts], batch_size, None):
        width = max(len(prompts[i]) for i in places)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in places])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in places])
        longest = max_new_tokens if context is None else min(max_new_tokens, context - width)
        settings = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=longest, eos_token_id=list(stops), pad_token_id=pad
        )
        # `generate` fills unset values from the model's own settings, so these are replaced as a whole.
        model.generation_config = GenerationConfig()
        try:
            out: Any = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([] if change is None else [change(places)]),
            )
        finally:
            model.generation_config = own
        answers = {}
        for i, answer in zip(places, out[:, width:].tolist(), strict=True):
            end = next((n + 1 for n, token in enumerate(answer) if token in stops), len(answer))
            answers[i] = answer[:end]
        yield answers


@torch.no_grad()
def continuation_nll(
    model: PreTrainedModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> list[tuple[float, int]]:
    """Return ``-Σ log p(continuation token | all before it)`` in nats, and the number of these tokens, for each row.

    Logits are computed in row blocks, never in full.

    Args:
        model: Model in evaluation mode.
        rows: Token ids of context and continuation. Without a context the first token of the continuation is left out,
            as nothing predicts it.
        batch_size: Number of rows in a batch.
        progress: Function called with the number of rows done.
    """
    results: list[tuple[float, int]] = [(0.0, 0) for _ in rows]
    device = model.get_input_embeddings().weight.device
    head = head_of(model)
    for places in _batches([len(a) + len(b) for a, b in rows], batch_size, progress):
        whole = [[*rows[i][0], *rows[i][1]] for i in places]
        width = max(map(len, whole))
        # Padding follows the tokens, so that causal attention does not reach it.
        ids = torch.tensor([row + [0] * (width - len(row)) for row in whole])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in whole])
        hidden = body_of(model)(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).last_hidden_state
        picked, labels, counts = [], [], []
        for row, i in enumerate(places):
            start = max(len(rows[i][0]), 1)
            counts.append(max(len(whole[row]) - start, 0))
            picked.append(hidden[row, start - 1 : start - 1 + counts[-1]])
            labels += whole[row][start:]
        label_N = torch.tensor(labels, dtype=torch.int64)
        hidden_NH = torch.cat(picked).to(head.weight_VH.device)
        nll_N = row_values(hidden_NH, head, [NLL()], label_N=label_N.to(hidden_NH.device))[NLL().name].double().cpu()
        for i, part in zip(places, nll_N.split(counts), strict=True):
            results[i] = (float(part.sum()), len(part))
    return results


def _batches(lengths: Sequence[int], size: int, progress: Progress | None) -> Iterator[list[int]]:
    """Yield batches of indices, longest rows first, so that too little memory shows at once and little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]
        if progress is not None:
            progress(min(start + size, len(order)))
