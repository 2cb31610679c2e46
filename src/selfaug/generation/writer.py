"""The writer that a method uses to generate: it answers each request once, and reports what was kept."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

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

__all__ = ["Source", "Writer", "enough"]

Item = Record | Conversation
Kept = TypeVar("Kept")


class Source(Protocol):
    """A model that replies to requests."""

    def ask(self, requests: Sequence[Request]) -> Iterator[dict[int, Reply]]:
        """Yield replies by the indices of their requests, some at a time."""
        ...


class Writer:
    """A writer that answers requests from the store, or else from a model.

    Args:
        source: Model that replies to requests that are not in the store.
        store: Store of replies, as this rank reads and writes it.
        made_by: Facts that the replies depend on besides the requests: model, tokenizer, chat template, number format.
        tokenizer: Tokenizer of the model that is trained.
        renderer: Renderer of the training prompts.
        max_length: Longest training row in tokens.
        length: Longest reply in tokens.
        seed: Seed of the run.
        cut_prompt_left: Whether too long prompts are cut at the left, as in training.
        rank: Index of this process.
        ranks: Number of processes that share the work.
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
        # Ranks without a shared disk hold different replies, but must agree on the missing ones.
        store.known.update(gather_object(list(store.known.items())))

    def write(self, requests: Sequence[Request], what: str) -> list[Reply]:
        """Return a reply for each request, in their order.

        Args:
            requests: Requests to answer; equal ones get the same reply.
            what: Name of the work, for the progress bar.
        """
        keys = [request.key(self._made_by) for request in requests]
        missing = [
            (key, request)
            for key, request in dict(zip(keys, requests, strict=True)).items()
            if key not in self._store.known
        ]
        own = missing[self._rank :: self._ranks]
        answered: list[tuple[str, Reply]] = []
        with counting(what, len(own)) as progress:
            for batch in self._source.ask([request for _, request in own]) if own else ():
                replies = [(own[i][0], reply) for i, reply in batch.items()]
                self._store.add(replies)
                answered += replies
                progress(len(answered))
        self.asked += len(missing)
        if missing:
            self._store.known.update(gather_object(answered))
        return [self._store.known[key] for key in keys]

    def draw(self, share: float, *about: str) -> bool:
        """Return true with probability ``share``, as a function of the run's seed and ``about``."""
        return random.Random(f"{self.seed}\0{key_of({'about': about})}").random() < share

    def seed_of(self, *about: object) -> int:
        """Return a seed that is a function of the run's seed and ``about``."""
        return random.Random(f"{self.seed}\0{about}").getrandbits(62)

    def prompt_of(self, item: Item) -> list[list[int]] | None:
        """Return the prompt tokens before each response of an item's training row; ``None`` where it does not fit."""
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
        """Print the counts of a method's samples, and store them with the finished items beside the samples."""
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
        """Return exactly ``count`` different conversations that fit, from as many attempts as needed.

        Args:
            method: Name of the method, for messages.
            count: Number of conversations.
            attempt: Function from indices of attempts, to be used as seeds, to a conversation each, or the name of the
                reason why there is none.

        Raises:
            DataError: If fewer than about a quarter of the attempts are usable.
        """
        seen: set[str] = set()
        counts: Counter[str] = Counter({"kept": 0})

        def usable(numbers: list[int]) -> Iterator[Conversation | None]:
            for outcome in attempt(numbers):
                reason = outcome if isinstance(outcome, str) else self._fault(outcome, seen)
                counts[f"refused_{reason}" if reason else "kept"] += 1
                yield None if reason or isinstance(outcome, str) else outcome

        def too_few(kept: int, tried: int) -> DataError:
            return DataError(
                f"method={method!r}: of {tried} conversations that the model wrote {kept} are of use, and {count} are "
                f"wanted ({_listed(counts)})",
                "use an instruct model, raise --generation_length or --max_length, or lower the method's ratio.",
            )

        kept, _ = enough(count, usable, too_few)
        self.report(method, counts, kept)
        return kept

    def _fault(self, conversation: Conversation, seen: set[str]) -> str:
        question = " ".join(str(conversation.messages[0]["content"]).casefold().split())
        if question in seen:
            return "repeated"
        if self.prompt_of(conversation) is None:
            return "too_long"
        seen.add(question)
        return ""


def enough(
    count: int, attempt: Callable[[list[int]], Iterable[Kept | None]], too_few: Callable[[int, int], DataError]
) -> tuple[list[Kept], int]:
    """Return exactly ``count`` usable results, from as many attempts as needed, and the number of attempts.

    Args:
        count: Number of results.
        attempt: Function from indices of attempts, to be used as seeds, to a result each, or ``None`` for an unusable
            one.
        too_few: Function from the numbers of usable results and of attempts to the error.

    Raises:
        DataError: If fewer than about a quarter of the attempts are usable.
    """
    kept: list[Kept] = []
    tried, most = 0, 4 * count + 16
    while len(kept) < count:
        if tried >= most:
            raise too_few(len(kept), tried)
        numbers = list(range(tried, min(most, tried + count - len(kept))))
        tried += len(numbers)
        kept += [result for result in attempt(numbers) if result is not None]
    return kept, tried


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items())
