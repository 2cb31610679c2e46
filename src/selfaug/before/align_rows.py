"""Rows without labels that are aligned beside the prompts: general texts, or texts that the base writes itself.

Every label of such a row is -100, so that the plan aligns all of its tokens and trains none. From there on it is a row
like any other: it is shuffled, packed, drawn, divided by and cached as prompts are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import Dataset, concatenate_datasets

from selfaug.before.generated_rows import writer_of
from selfaug.common.errors import ConfigError, DataError
from selfaug.common.terminal import is_main, say
from selfaug.data.encode import encode
from selfaug.data.record import Conversation
from selfaug.data.tokens import text_ids
from selfaug.generation.from_start import start_of_text, texts_from_start
from selfaug.generation.header import user_turn
from selfaug.generation.requests import Request
from selfaug.generation.writer import enough
from selfaug.planning.plan import IGNORED

if TYPE_CHECKING:
    from selfaug.before.context import BeforeTraining
    from selfaug.generation.writer import Writer

__all__ = ["SELF", "AlignData", "align_rows", "beside", "share_of", "written_rows"]

SELF = "self"
_FILE = "give a file of texts instead: --align_data FILE."


class AlignData(NamedTuple):
    """Where the texts of `--align_data` come from.

    Args:
        path: File or folder of texts; ``None`` where the base writes them.
        wanted: Number of texts that the base writes; ``None`` for as many as an epoch has rows of them.
    """

    path: Path | None
    wanted: int | None

    @classmethod
    def parse(cls, value: str) -> AlignData:
        """Parse ``FILE``, ``self`` or ``self:N``.

        Raises:
            ConfigError: If N is no number of 1 or more.
        """
        name, colon, number = value.partition(":")
        if name != SELF:
            return cls(Path(value).expanduser(), None)
        if not colon:
            return cls(None, None)
        if not number.isdecimal() or int(number) < 1:
            raise ConfigError(
                f"align_data={value!r} names no number of texts for the base to write.",
                "write self:200 for two hundred, or self for as many as are aligned in an epoch; a file whose name "
                "begins like that is ./self:...",
            )
        return cls(None, int(number))


def share_of(rows: int, share: float) -> int:
    """``round(share / (1 - share) · rows)``: the rows beside ``rows`` others of which they are the given share."""
    return round(share / (1 - share) * rows)


def align_rows(before: BeforeTraining, rows_of: Callable[[Path], Any], wanted: int) -> Dataset:
    """Return the rows (``input_ids``, ``labels`` of -100) of the texts that the settings name.

    Args:
        before: Run before its first step.
        rows_of: Function that tokenises the rows of a file, whatever their length.
        wanted: Number of rows of an epoch.

    Raises:
        ConfigError: If the data set is a stream.
        DataError: If there is no text of two tokens, or the base hardly writes any.
    """
    config = before.config
    assert config.align_data is not None
    path, count = AlignData.parse(config.align_data)
    if not isinstance(before.rows, Dataset):
        raise ConfigError(
            f"align_data={config.align_data!r} is a share of the rows, and the training data set is a stream or was "
            "not prepared here.",
            "give a data set of known length (--dataset_streaming false, without skip_prepare_dataset).",
        )
    if path is not None:
        texts = [list(row["input_ids"]) for row in rows_of(path)]
    else:
        if is_main():
            say("the base writes texts to align ...")
        with before.autocast():
            texts = written_rows(writer_of(before), count or wanted)
    # A prefix of a text is a text as well, so one that is too long is cut at its right.
    texts = [ids[: before.max_length] for ids in texts]
    texts = [ids for ids in texts if len(ids) > 1]
    if not texts:
        raise DataError(
            f"align_data={config.align_data!r} holds no text of two tokens, and a single one predicts nothing.",
            'give texts, such as rows {"text": "..."}, or let the base write: --align_data self.',
        )
    features = before.rows.select_columns(["input_ids", "labels"]).features
    return Dataset.from_list([{"input_ids": t, "labels": [IGNORED] * len(t)} for t in texts], features=features)


def beside(rows: Dataset, texts: Dataset, share: float, seed: int) -> Dataset:
    """Return ``rows`` followed by ``share_of(len(rows), share)`` of the texts, drawn by the seed.

    Where they are fewer, each is taken equally often, to one: a text that is aligned again teaches nothing by heart.
    """
    count = share_of(len(rows), share)
    rounds, rest = divmod(count, len(texts))
    chosen = [*list(range(len(texts))) * rounds, *random.Random(seed).sample(range(len(texts)), rest)]
    if is_main():
        say(f"{count} rows of {len(texts)} texts are aligned beside {len(rows)} training rows")
    kept = rows.select_columns(["input_ids", "labels"])
    return concatenate_datasets([kept, texts.select(sorted(chosen))]) if chosen else kept


def written_rows(writer: Writer, count: int) -> list[list[int]]:
    """Return the tokens of ``count`` texts that the base writes at temperature 1, from its whole distribution.

    With a chat template a text is a conversation: the base is given what opens a user's turn, writes the turn, and
    then answers it. Without one it is given its start token, or its end-of-text token where it has none. The draws
    depend on the base alone, not on the run's seed, so that runs share a reference cache.

    Raises:
        ConfigError: If the tokenizer has neither a chat template nor one of these tokens.
        DataError: If fewer than about a quarter of the attempts have a word.
    """
    write = _conversations if writer.renderer.mode == "chat" else _texts

    def too_few(kept: int, tried: int) -> DataError:
        return DataError(
            f"align_data: {kept} of {tried} texts that the base wrote have a word, and {count} are wanted.",
            "give a file of texts instead: this base ends at once when it is given nothing to go on.",
        )

    kept, tried = enough(count, partial(write, writer), too_few)
    writer.report("align_data", {"kept": len(kept), "refused_empty": tried - len(kept)}, [])
    return kept


def _seed_of(number: int) -> int:
    return random.Random(f"align_data\0{number}").getrandbits(62)


def _texts(writer: Writer, numbers: Sequence[int]) -> list[list[int] | None]:
    if not start_of_text(writer.tokenizer):
        raise ConfigError(
            f"align_data lets the base write from its start token, and {writer.tokenizer.name_or_path!r} has neither a "
            "chat template nor a start or an end-of-text token.",
            _FILE,
        )
    return texts_from_start(writer, [_seed_of(n) for n in numbers], "texts", temperature=1.0)


def _conversations(writer: Writer, numbers: Sequence[int]) -> list[list[int]]:
    turn = user_turn(writer.tokenizer, writer.renderer, setting="align_data", hint=_FILE)
    asked = writer.write(
        [
            Request(text=turn.header, stop=turn.end, length=writer.length, temperature=1.0, seed=_seed_of(n))
            for n in numbers
        ],
        "instructions",
    )
    turns = {n: reply for n, reply in zip(numbers, asked, strict=True) if reply.text}
    requests = {
        n: Request(
            ({"role": "user", "content": writer.renderer.escape(reply.text)},),
            length=writer.length,
            temperature=1.0,
            seed=_seed_of(n),
        )
        for n, reply in turns.items()
        if reply.ended
    }
    answers = dict(zip(requests, writer.write(list(requests.values()), "answers"), strict=True))
    found = []
    for n, reply in turns.items():
        if n not in answers or not answers[n].text:  # a turn that was cut off is a text all the same
            found.append(text_ids(writer.tokenizer, turn.header + reply.text))
            continue
        messages = ({"role": "user", "content": reply.text}, {"role": "assistant", "content": answers[n].text})
        rows = encode([Conversation(messages)], writer.tokenizer, writer.renderer, max_length=None).rows
        found.append(list(rows[0]["input_ids"]))
    return found
