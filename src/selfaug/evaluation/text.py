"""The NLL of plain texts, in nats per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import DataError
from selfaug.common.files import json_lines, read_json, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Window", "read_texts", "text_nll", "windows"]

_DEFAULT_WINDOW = 2048


@dataclass(frozen=True)
class Window:
    """A window of a text's tokens that the model reads in one pass.

    Args:
        text: Index of the text in its file.
        ids: Token ids; the first window of a text begins with BOS where the tokenizer adds it.
        context: Number of leading tokens that are not scored.
    """

    text: int
    ids: list[int]
    context: int


def read_texts(path: str | Path, setting: str = "general_data") -> list[str]:
    """Return the texts of a file.

    Args:
        path: File of texts: a list of strings in ``.json``, the ``text`` of each row in ``.jsonl``, else one text.
        setting: Name of the setting that holds the path, for messages.

    Raises:
        DataError: If the file does not exist, is not a text file, or holds no text or one that UTF-8 cannot write.
    """
    suffix = Path(path).suffix.lower()
    texts: Any
    if suffix == ".json":
        texts = read_json(path, setting)
    elif suffix == ".jsonl":
        texts = [row.get("text") if isinstance(row, dict) else row for _, row in json_lines(path, setting)]
    else:
        texts = [read_text(path, setting)]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{setting} {str(path)!r} holds something else than texts",
            'give a .txt file, a .json list of texts, or .jsonl rows {"text": "..."}.',
        )
    for number, text in enumerate(texts, start=1):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{setting} {str(path)!r}: text {number} holds half of a surrogate pair, which is no character",
                "mend it.",
            ) from None
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise DataError(f"{setting} {str(path)!r} holds no text", "give a file with text in it.")
    return kept


def windows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, context: int | None) -> list[Window]:
    """Return the texts' tokens in windows of at most ``context`` tokens.

    Every token but the first of a text is scored once. Each further window of a text begins with the second half of
    the window before, unscored.
    """
    size = context or _DEFAULT_WINDOW
    pieces = []
    for number, text in enumerate(texts):
        ids: list[int] = tokenizer(text, add_special_tokens=True)["input_ids"]
        if ids and ids[-1] == tokenizer.eos_token_id and ids[0] != tokenizer.eos_token_id:
            ids = ids[:-1]
        start, scored = 0, 1
        while scored < len(ids):
            end = min(start + size, len(ids))
            pieces.append(Window(number, ids[start:end], scored - start))
            start, scored = max(end - size // 2, start + 1), end
    return pieces


def text_nll(
    model: PreTrainedModel,
    pieces: Sequence[Window],
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[float, int]]:
    """Return the NLL (nats) and the number of scored tokens of each text, in the order of the texts."""
    from selfaug.generation.decoding import continuation_nll

    rows = [(piece.ids[: piece.context], piece.ids[piece.context :]) for piece in pieces]
    nlls = continuation_nll(model, rows, batch_size=batch_size, progress=progress)
    totals: dict[int, tuple[float, int]] = {}
    for piece, (nats, count) in zip(pieces, nlls, strict=True):
        before = totals.get(piece.text, (0.0, 0))
        totals[piece.text] = (before[0] + nats, before[1] + count)
    return [totals[number] for number in sorted(totals)]
