"""Generation in batches by the model in memory with its adapter off; each reply is a function of its own request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, TopPLogitsWarper

from selfaug.data.template import ChatTemplate, matcher
from selfaug.data.tokens import text_ids
from selfaug.generation.decoding import in_batches, pad_id, stop_ids, without_stop
from selfaug.generation.requests import Reply, Request
from selfaug.model.switch import adapters_off, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["LocalModel"]


class LocalModel:
    """A source of replies from the loaded model with its adapter off.

    A draw adds Gumbel noise from the request's own seed to the scaled scores and takes the largest, which is an exact
    draw from their softmax. So a reply does not depend on the other requests of the batch (up to the rounding of padded
    sums), and a resumed run gets the replies that the killed one would have got.

    Args:
        model: Causal LM inside all wrappers.
        tokenizer: Tokenizer of the model.
        renderer: Renderer with the chat template.
        batch_size: Number of requests in a batch.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, renderer: Renderer, batch_size: int
    ) -> None:
        self.model, self.tokenizer, self.renderer, self.batch_size = model, tokenizer, renderer, batch_size

    def ask(self, requests: Sequence[Request]) -> Iterator[dict[int, Reply]]:
        """Yield replies by the indices of their requests, batch by batch.

        A request that fills the model's context gets an empty reply that has not ended.
        """
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        prompts = [self._ids(request) for request in requests]
        full = {i: Reply("", False) for i, ids in enumerate(prompts) if context is not None and len(ids) >= context}
        if full:
            yield full
        # A batch has one stop and one length.
        groups: dict[tuple[str, int], list[int]] = {}
        for i, request in enumerate(requests):
            if i not in full:
                groups.setdefault((request.stop, request.length), []).append(i)
        for (stop, length), places in groups.items():
            yield from self._group(requests, prompts, places, stop, length, context)

    def _group(
        self,
        requests: Sequence[Request],
        prompts: Sequence[Sequence[int]],
        places: Sequence[int],
        stop: str,
        length: int,
        context: int | None,
    ) -> Iterator[dict[int, Reply]]:
        own = text_ids(self.tokenizer, stop) if stop else []
        stops = sorted({*stop_ids(self.model, self.tokenizer, self.renderer), *(own if len(own) == 1 else ())})
        batches = in_batches(
            self.model,
            [prompts[i] for i in places],
            stops=stops,
            pad=pad_id(self.tokenizer),
            max_new_tokens=length,
            batch_size=self.batch_size,
            context=context,
            change=lambda batch: _Draw([requests[places[i]] for i in batch]),
        )
        while True:
            # The context ends before each yield, so that the caller finds the model unchanged.
            with torch.no_grad(), adapters_off(self.model), evaluating(self.model):
                batch = next(batches, None)
            if batch is None:
                return
            yield {places[i]: self._reply(ids, stops, stop) for i, ids in batch.items()}

    def _ids(self, request: Request) -> list[int]:
        if request.text:
            return text_ids(self.tokenizer, request.text)
        template = ChatTemplate(self.tokenizer, self.renderer.chat_template, kwargs=self.renderer.chat_template_kwargs)
        return text_ids(self.tokenizer, template.render(request.messages, generation=True))

    def _reply(self, ids: Sequence[int], stops: Sequence[int], stop: str) -> Reply:
        kept, ended = without_stop(ids, stops)
        text: str = self.tokenizer.decode(kept, skip_special_tokens=False)
        places = [at for at in (text.find(stop) if stop else -1,) if at >= 0]
        control = matcher(self.renderer.specials).search(text)  # the model has begun another turn
        places += [control.start()] if control else []
        return Reply(text[: min(places)].strip(), True) if places else Reply(text.strip(), ended)


class _Draw(LogitsProcessor):
    """A logits processor after which the largest score of a row is a draw by the row's own generator."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(r.seed) for r in self._requests]
        if not any(request.temperature for request in self._requests):
            return scores
        drawn = scores.float().clone()
        for row, (request, generator) in enumerate(zip(self._requests, self._generators, strict=True)):
            if not request.temperature:
                continue
            scaled = drawn[row] / request.temperature
            if request.top_p < 1:
                scaled = TopPLogitsWarper(request.top_p)(input_ids[row : row + 1], scaled[None])[0]
            # -log of an exponential variable is a Gumbel variable.
            drawn[row] = scaled - torch.empty_like(scaled).exponential_(generator=generator).log()
        return drawn
