"""`sdft`: trains on answers that the base rewrites in its own words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from selfaug.data.fit import fit_record
from selfaug.data.forms import Forms, read_forms
from selfaug.data.metrics import abstains, answer_f1, answer_words, crag_verdict
from selfaug.data.record import Conversation, Item, Record
from selfaug.data.words import words
from selfaug.generation.requests import Reply, Request
from selfaug.methods.base import Changes, Method
from selfaug.methods.chat import require_chat
from selfaug.methods.options import option

if TYPE_CHECKING:
    from selfaug.generation.writer import Writer
    from selfaug.training.config import SelfAugConfig

__all__ = ["SDFT", "agrees", "rewritten", "speaks_of_the_task"]

REWRITE = """{question}

A correct reference answer: {answer}

Answer in your own words. Say what the reference answer says and nothing that contradicts it. Do not mention the \
reference answer."""

_OF_THE_TASK = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
"""Phrases of the published code's list: a rewrite with one of them speaks of its task."""
_NUMBER = re.compile(r"-?\d")
_NEGATION = re.compile(r"\b(?:no|not|never|none|nor|neither|without|cannot)\b|n['’]t\b", re.IGNORECASE)


class SDFT(Method):
    """``loss = Σ nll / n_response`` on the base's rewrite of each answer where it agrees with it, else on the answer.

    Before the first step the base gets each prompt with its answer, and rewrites the answer in its own words. The
    rewrite is used if it ends by itself, does not speak of its task (:func:`speaks_of_the_task`), agrees with the
    answer (:func:`agrees`) and fits `max_length` with the same prompt. `rewrite_share` is the share of the answers that
    are rewritten. Answers of records and assistant turns that follow a user turn are rewritten.

    Source: self-distillation fine-tuning, arXiv 2402.13669, and its code (sail-sg/sdft). Differences: the wording of
    the instruction; agreement is judged by the project's own metrics. The published code
    (`eval/gen_distilled_data.py:22-29`) takes every rewrite except of four data sets: of arithmetic it wants the same
    last integer (`eval_math.py:33`), of OpenFunction the same call (`eval_openfunction.py:23`), of Magicoder a Python
    block behind one of three openings (`eval_magicoder.py:37`). `rewrite_agreement` 0 takes every rewrite, too.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `sdft`."""

        rewrite_share: float = option(
            1.0, "Share of the answers that the base rewrites; 0 is plain fine-tuning.", least=0.0, most=1.0
        )
        rewrite_agreement: float = option(
            0.7,
            "Smallest word F1 at which a rewrite that does not contain the answer still agrees with it; 1 requires the "
            "same words, 0 takes every rewrite, as published.",
            least=0.0,
            most=1.0,
        )
        rewrite_temperature: float = option(0.0, "Sampling temperature of the rewrites; 0 is greedy.", least=0.0)
        rewrite_abstentions: str | None = option(
            None, "YAML file of further ways to say that there is no answer, as `evaluate --abstentions`.", path=True
        )

    name: ClassVar[str] = "sdft"
    summary: ClassVar[str] = "answers rewritten by the base, where the rewrite agrees"
    formula: ClassVar[str] = "NLL on the base's rewrite of the answer where it agrees with it, else on the answer"
    source: ClassVar[str] = "2402.13669"
    differs: ClassVar[str] = (
        "the wording of the instruction; agreement is judged by our metrics, where the published code takes every "
        "rewrite but of arithmetic, function calls and Python"
    )
    needs: ClassVar[str] = "an instruct model; records or conversations"
    strength: ClassVar[str] = "rewrite_share"
    decides: ClassVar[frozenset[str]] = frozenset({"the answers"})

    def check(self, config: SelfAugConfig) -> None:
        """Raise if the forms of abstention cannot be read."""
        read_forms(self.options(config).rewrite_abstentions)

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the rewriting, if the share is above 0."""
        o = self.options(config)
        if not o.rewrite_share:
            return Changes()
        rewrite = partial(
            rewritten,
            share=o.rewrite_share,
            agreement=o.rewrite_agreement,
            temperature=o.rewrite_temperature,
            forms=read_forms(o.rewrite_abstentions),
        )
        return Changes(rewrite=rewrite, check_prompts=(require_chat(self.name),))


def speaks_of_the_task(rewrite: str) -> bool:
    """Whether a rewrite contains a phrase of the published code's list (lines 54-69), or begins with "Your turn"."""
    return rewrite.startswith("Your turn") or any(phrase in rewrite.lower() for phrase in _OF_THE_TASK)


def agrees(
    rewrite: str, answers: Sequence[str], agreement: float = 0.7, abstention: str = "", forms: Forms | None = None
) -> bool:
    """Whether a rewrite still says what the answer says.

    It must contain the words of an accepted answer in order (CRAG's verdict "right"), or reach a word F1 of
    ``agreement`` with the first one. In both cases it must contain the first answer's numbers, and must negate and
    abstain if and only if that answer does.

    Args:
        rewrite: Text that the base wrote.
        answers: Accepted answers, of which the first is trained.
        agreement: Smallest word F1, in [0, 1]; with 0 every text agrees.
        abstention: Text that is trained for questions without an answer.
        forms: Forms of abstention; ``None`` for those of the package.
    """
    if not agreement:
        return True
    gold = answers[0]
    if abstains(rewrite, abstention, forms) != abstains(gold, abstention, forms) or not words(rewrite):
        return False
    if bool(_NEGATION.search(rewrite)) != bool(_NEGATION.search(gold)):
        return False
    if not set(filter(_NUMBER.match, answer_words(gold))) <= set(filter(_NUMBER.match, answer_words(rewrite))):
        return False
    return crag_verdict(rewrite, answers, abstention, forms) == "right" or answer_f1(rewrite, [gold]) >= agreement


def rewritten(
    items: Sequence[Item],
    writer: Writer,
    *,
    share: float,
    agreement: float,
    temperature: float,
    forms: Forms | None = None,
) -> list[Item]:
    """Return the items, with answers replaced by the rewrites that are used."""
    counts: Counter[str] = Counter({"rewritten": 0, "kept": 0})
    requests: list[tuple[int, int, Request]] = []  # with the indices of the item and of the turn in it
    for index, item in enumerate(items):
        turns = _turns(item)
        for turn in turns:
            answer = _answers(item, turn)[0]
            if not writer.draw(share, str(item.to_row()), str(turn)):
                counts["kept"] += 1
                continue
            messages = _prompt(item, turn, writer)
            question, reference = messages[-1]["content"], writer.renderer.escape(answer).strip()
            instruction = REWRITE.format(question=question, answer=reference)
            messages = [*messages[:-1], {**messages[-1], "content": instruction}]
            seed = writer.seed_of("sdft", str(item.to_row()), turn)
            request = Request(tuple(messages), length=writer.length, temperature=temperature, seed=seed)
            requests.append((index, turn, request))
        counts["kept"] += not turns
    replies = writer.write([request for _, _, request in requests], "rewritten answers")
    texts_of: dict[int, dict[int, str]] = {}
    for (index, turn, _), reply in zip(requests, replies, strict=True):
        fault = _fault(reply, _answers(items[index], turn), agreement, writer.renderer.abstention, forms)
        if fault:
            counts[f"refused_{fault}"] += 1
        else:
            texts_of.setdefault(index, {})[turn] = reply.text
    changed = list(items)
    for index, texts in texts_of.items():
        new = _with(items[index], texts)
        if writer.prompt_of(new) == writer.prompt_of(items[index]):
            changed[index] = new
            counts["rewritten"] += len(texts)
        else:
            counts["refused_too_long"] += len(texts)
    writer.report("sdft", counts, changed)
    return changed


def _turns(item: Item) -> list[int]:
    """Return the turns to rewrite: 0 for a record's answer, or the indices of assistant turns after a user turn."""
    if isinstance(item, Record):
        return [0] if item.answers else []
    return [
        t for t, (before, message) in enumerate(zip(item.messages, item.messages[1:], strict=False), start=1)
        if message["role"] == "assistant" and before["role"] == "user" and not message.get("tool_calls")
    ]  # fmt: skip


def _answers(item: Item, turn: int) -> Sequence[str]:
    return item.answers if isinstance(item, Record) else [str(item.messages[turn]["content"])]


def _prompt(item: Item, turn: int, writer: Writer) -> list[dict[str, Any]]:
    renderer = writer.renderer
    if isinstance(item, Record):
        fitted = fit_record(item, renderer, writer.tokenizer, writer.max_length if item.documents else None)
        return renderer.messages(item, item.documents if fitted is None else fitted.kept_documents)
    # Templates place documents themselves only in a whole conversation.
    before = Conversation(item.messages[:turn], item.documents)
    return replace(renderer, template_documents=False).conversation_messages(before)


def _fault(reply: Reply, answers: Sequence[str], agreement: float, abstention: str, forms: Forms | None) -> str:
    if not reply.ended or not reply.text:
        return "unfinished"
    if speaks_of_the_task(reply.text):
        return "of_the_task"
    return "" if agrees(reply.text, answers, agreement, abstention, forms) else "disagreeing"


def _with(item: Item, texts: dict[int, str]) -> Item:
    if isinstance(item, Record):
        return replace(item, answers=(texts[0], *item.answers))
    messages = [{**m, "content": texts[t]} if t in texts else m for t, m in enumerate(item.messages)]
    return replace(item, messages=tuple(messages))
