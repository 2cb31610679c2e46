"""The writer given to a method: answers its requests, each once, and counts what became of the replies."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from accelerate.utils import gather_object

from selfaug.common.errors import DataError
from selfaug.common.files import json_of_ours
from selfaug.common.progress import counting
from selfaug.common.store import key_of, write_whole
from selfaug.common.terminal import is_main, say
from selfaug.data.encode import encode
from selfaug.data.record import Conversation, Record
from selfaug.generation.requests import Reply, Request
from selfaug.generation.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["Source", "Writer"]

Item = Record | Conversation


class Source(Protocol):
    """A model that replies."""

    def ask(self, requests: Sequence[Request]) -> Iterator[dict[int, Reply]]:
        """Replies by the places of their requests, some at a time."""
        ...


class Writer:
    """Answers requests, from the store where they were answered before.

    Args:
        source: Replies to the others.
        store: Of this rank.
        made_by: What the replies depend on besides the requests: model, tokenizer, chat template, number format.
        tokenizer: Of the model that is trained.
        renderer: Of its prompts.
        max_length: Longest training row in tokens.
        length: Longest reply in tokens.
        seed: Of the run.
        cut_prompt_left: As in training.
        rank: Of this process.
        ranks: Processes that share the work.
    """

    def __init__(
        self,
        source: Source,
        store: Store,
        made_by: Mapping[str, Any],
        *,
        tokenizer: PreTrainedTokenizerBase,
        renderer: Renderer,
        max_length: int | None,
        length: int,
        seed: int,
        cut_prompt_left: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.tokenizer, self.renderer, self.length, self.seed = tokenizer, renderer, length, seed
        self._source, self._store, self._made_by = source, store, dict(made_by)
        self.max_length, self._cut_prompt_left = max_length, cut_prompt_left
        self._rank, self._ranks = rank, ranks
        self.asked = 0
        self.counts: dict[str, Counter[str]] = {}
        # Ranks that do not share a disk know different replies; all must agree on what is still to be asked.
        store.known.update(gather_object(list(store.known.items())))

    def write(self, requests: Sequence[Request], what: str) -> list[Reply]:
        """A reply for each request, in their order.

        Args:
            requests: Equal ones get one reply.
            what: Is written, for the progress bar.
        """
        keys = [request.key(self._made_by) for request in requests]
        missing = [
            (key, request)
            for key, request in dict(zip(keys, requests, strict=True)).items()
            if key not in self._store.known
        ]
        mine = missing[self._rank :: self._ranks]
        found: list[tuple[str, Reply]] = []
        with counting(what, len(mine)) as progress:
            for batch in self._source.ask([request for _, request in mine]) if mine else ():
                replies = [(mine[i][0], reply) for i, reply in batch.items()]
                self._store.add(replies)
                found += replies
                progress(len(found))
        self.asked += len(missing)
        if missing:
            self._store.known.update(gather_object(found))
        return [self._store.known[key] for key in keys]

    def draw(self, share: float, *about: str) -> bool:
        """Whether something is drawn, with this chance: a function of the run's seed and what it is about."""
        return random.Random(f"{self.seed}\0{key_of({'about': about})}").random() < share

    def seed_of(self, *about: object) -> int:
        """A seed of its own for something: a function of the run's seed and what it is about."""
        return random.Random(f"{self.seed}\0{about}").getrandbits(62)

    def prompt_of(self, item: Item) -> list[list[int]] | None:
        """The prompt tokens of an item's training row, up to each response; ``None`` where it does not fit."""
        try:
            rows = encode(
                [item], self.tokenizer, self.renderer, max_length=self.max_length, cut_prompt_left=self._cut_prompt_left
            ).rows
        except DataError:
            return None
        if not rows:
            return None
        parts: list[list[int]] = [[]]
        for token, label in zip(rows[0]["input_ids"], rows[0]["labels"], strict=True):
            if label == -100:
                parts[-1].append(token)
            elif parts[-1]:
                parts.append([])
        return parts

    def report(self, method: str, counts: Mapping[str, int], items: Sequence[Item]) -> None:
        """Say what became of a method's samples, and keep it with the finished items beside the samples."""
        self.counts[method] = Counter(dict(counts))
        listed = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items() if number)
        say(f"{method}: {listed or 'nothing'}")
        if not is_main():
            return
        folder = self._store.folder
        path = folder / "counts.json"
        known = json_of_ours(path) or {}
        write_whole(path, json.dumps({**known, method: dict(counts)}, indent=2) + "\n")
        lines = [json.dumps(item.to_row(), ensure_ascii=False) + "\n" for item in items]
        write_whole(folder / f"{method}.jsonl", "".join(lines))

    def gather(
        self,
        method: str,
        count: int,
        attempt: Callable[[list[int]], list[Conversation | str]],
    ) -> list[Conversation]:
        """``count`` different conversations that fit, by as many attempts as that takes.

        Args:
            method: For messages.
            count: Exactly so many.
            attempt: From numbers of attempts, which are seeds, to a conversation each, or why there is none.

        Raises:
            DataError: If fewer than a quarter of the attempts are of use.
        """
        kept: list[Conversation] = []
        seen: set[str] = set()
        counts: Counter[str] = Counter({"kept": 0})
        tried, most = 0, 4 * count + 16
        while len(kept) < count:
            if tried >= most:
                raise DataError(
                    f"method={method!r}: of {tried} conversations that the model wrote {len(kept)} are of use, and "
                    f"{count} are wanted ({_listed(counts)})",
                    "use an instruct model, raise --generation_length or --max_length, or lower the method's ratio.",
                )
            numbers = list(range(tried, min(most, tried + count - len(kept))))
            tried += len(numbers)
            for found in attempt(numbers):
                reason = found if isinstance(found, str) else self._fault(found, seen)
                counts[f"refused_{reason}" if reason else "kept"] += 1
                if not reason:
                    assert isinstance(found, Conversation)
                    kept.append(found)
        self.report(method, counts, kept)
        return kept

    def _fault(self, conversation: Conversation, seen: set[str]) -> str:
        asked = " ".join(str(conversation.messages[0]["content"]).casefold().split())
        if asked in seen:
            return "repeated"
        if self.prompt_of(conversation) is None:
            return "too_long"
        seen.add(asked)
        return ""


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items())
