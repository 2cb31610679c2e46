"""Does every token of a record belong to exactly one region, and to the one whose words it holds?"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.data.encode import conversation_tokens, encode
from selfaug.data.fit import fit_record
from selfaug.data.prompts import Renderer
from selfaug.data.record import Conversation, Document, Record
from selfaug.data.tokens import record_tokens
from selfaug.shift.regions import (
    PROMPT_REGIONS,
    REGIONS,
    by_labels,
    conversation_regions,
    prompt_pieces,
    record_regions,
    token_regions,
)
from tests.models import tiny_tokenizer
from tests.unit.data.chat import FAMILIES, byte_level, tokenizer_of

# A word tells its region: the oracle below needs neither offsets nor the renderer.
WORDS = {"system": range(10, 20), "documents": range(20, 50), "question": range(50, 60), "response": range(60, 70)}


def words(region: str, least: int = 1, most: int = 6) -> st.SearchStrategy[str]:
    ids = st.sampled_from(list(WORDS[region]))
    return st.lists(ids, min_size=least, max_size=most).map(lambda found: " ".join(f"w{i}" for i in found))


def planted(token: int) -> str:
    return next((region for region, ids in WORDS.items() if token in ids), "other")


@settings(max_examples=80, deadline=None)
@given(
    system=words("system", 0),
    documents=st.lists(words("documents", 1, 12), min_size=1, max_size=5),
    titles=st.booleans(),
    question=words("question"),
    answer=words("response"),
    position=st.sampled_from(["after", "before", "both"]),
    order=st.sampled_from(["given", "reversed"]),
    cut=st.integers(0, 20),
)
def test_regions_partition_the_sequence_and_are_those_of_the_words(
    system: str, documents: list[str], titles: bool, question: str, answer: str, position: str, order: str, cut: int
) -> None:
    tokenizer = tiny_tokenizer()
    renderer = Renderer.for_tokenizer(
        tokenizer, system=system, question_position=position, order=order,
        # Words of no region, so that the oracle knows the edges of what the renderer adds.
        document_titled="w21 {title}", document_untitled="w20", question="w50 {question}", answer_cue="w90 w91",
    )  # fmt: skip
    named = [Document(text, "w22" if titles else None) for text in documents]
    record = Record(question, tuple(named), (answer,))
    whole = sum(map(len, record_tokens(renderer, tokenizer, record)))
    fitted = fit_record(record, renderer, tokenizer, max(whole - cut, 1))
    if fitted is None:
        return
    regions = record_regions(tokenizer, renderer, record, fitted.kept_documents, fitted.labels)
    assert len(regions) == len(fitted.input_ids)
    assert set(regions) <= set(REGIONS)
    first = sum(label == -100 for label in fitted.labels)
    wanted = [planted(token) for token in fitted.input_ids]
    wanted[first - 1] = "boundary"
    wanted[first:] = ["response"] * (len(wanted) - first)  # its end-of-sequence token too
    assert regions == wanted
    assert "question" in regions
    assert "documents" in regions


RECORD = Record(
    "Where is the Eiffel Tower?",
    (Document("It stands in Paris.", "Tower"), Document("Lily liked the park.\n\nShe had a dog."), Document("one two")),
    ("Paris",),
    system="Answer the question with care.",
)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_like", "trimmed"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_chat_templates_show_the_words_of_each_region(name: str, kind: str) -> None:
    tokenizer = tokenizer_of(FAMILIES[name], kind)
    renderer = Renderer.for_tokenizer(tokenizer)
    prompt, response = record_tokens(renderer, tokenizer, RECORD)
    labels = [-100] * len(prompt) + response
    regions = record_regions(tokenizer, renderer, RECORD, RECORD.documents, labels)
    assert len(regions) == len(labels)
    assert regions.count("boundary") == 1
    assert regions.index("boundary") == len(prompt) - 1

    def text(region: str) -> str:
        chosen = [token for token, own in zip(prompt + response, regions, strict=True) if own == region]
        return " ".join(tokenizer.decode(chosen).split())

    assert text("system") == "Answer the question with care."
    assert text("question").replace(" :", ":") == "Question: Where is the Eiffel Tower?"
    # Line breaks may share a token with a neighbouring word; no word may be lost or gained.
    assert text("documents").replace(" ", "") == (
        "Document1:TowerItstandsinParis.Document2Lilylikedthepark.Shehadadog.Document3onetwo"
    )
    assert not {"Paris", "Tower", "Answer", "Question"} & set(text("other").split())


def test_a_system_text_that_the_template_refuses_is_still_found() -> None:
    tokenizer = tokenizer_of(FAMILIES["gemma"])
    renderer = Renderer.for_tokenizer(tokenizer)
    assert not renderer.system_role
    text = renderer.prompt_text(tokenizer, RECORD)
    found = prompt_pieces(tokenizer, renderer, RECORD, RECORD.documents, text)
    assert [piece.region for piece in found] == ["system", *["documents"] * 3, "question"]
    assert text[found[0].start : found[0].end] == RECORD.system
    assert text[found[2].start : found[2].end] == "Document 2\nLily liked the park.\n\nShe had a dog."


def test_words_that_stand_twice_are_told_apart() -> None:
    """System text, a document and the question are the same words: a search for the text would find the first."""
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    renderer = Renderer.for_tokenizer(tokenizer, question="{question}", document_untitled="")
    record = Record("user", (Document("user"),), ("user",), system="user")
    text = renderer.prompt_text(tokenizer, record)
    assert text.count("user") == 4
    found = prompt_pieces(tokenizer, renderer, record, record.documents, text)
    assert [(piece.region, text[: piece.start].count("user")) for piece in found] == [
        ("system", 0), ("documents", 2), ("question", 3),
    ]  # fmt: skip


def test_a_template_that_changes_the_words_is_not_guessed_at() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | replace('Lily', 'LILY') }}\n{% endfor %}"
        "{{ 'assistant:' if add_generation_prompt else '' }}"
    )
    tokenizer = byte_level("<s>", "</s>", template)
    renderer = Renderer.for_tokenizer(tokenizer)
    text = renderer.prompt_text(tokenizer, RECORD)
    assert prompt_pieces(tokenizer, renderer, RECORD, RECORD.documents, text) == []
    assert set(token_regions(tokenizer, text, [], bos=False)) == {"other"}


def test_a_tokenizer_without_offsets_is_asked_for_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    renderer = Renderer.for_tokenizer(tokenizer, system="w10 w11")
    record = Record("w50", (Document("w20 w21"),), ("w60",))
    text = renderer.prompt_text(tokenizer, record)
    pieces = prompt_pieces(tokenizer, renderer, record, record.documents, text)
    fast = token_regions(tokenizer, text, pieces, bos=True)
    assert {"system", "documents", "question"} <= set(fast)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert token_regions(tokenizer, text, pieces, bos=True) == fast


def test_boundaries_of_several_answers() -> None:
    labels = [-100, -100, 7, 8, -100, -100, 9]
    assert by_labels(["other"] * 7, labels) == [
        "other", "boundary", "response", "response", "other", "boundary", "response",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_like"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_conversations_show_the_words_of_each_turn(name: str, kind: str) -> None:
    said = [
        {"role": "system", "content": "Answer the question with care."},
        {"role": "user", "content": "Where is the Eiffel Tower?"},
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": "Hello world, who are you?"},
        {"role": "assistant", "content": "I am fine, thanks!"},
    ]
    tokenizer = tokenizer_of(FAMILIES[name], kind)
    if not FAMILIES[name].system:
        said = said[1:]
    item = Conversation(tuple(said), (Document("It stands in France."),))
    renderer = Renderer.for_tokenizer(tokenizer, document_untitled="")
    ids, labels = conversation_tokens(item, tokenizer, renderer)
    regions = conversation_regions(tokenizer, renderer, item, item.documents, ids, labels)
    assert len(regions) == len(ids)
    assert regions.count("boundary") == 2

    def text(region: str) -> str:
        chosen = [token for token, own in zip(ids, regions, strict=True) if own == region]
        return tokenizer.decode(chosen, skip_special_tokens=True).replace(" ", "").replace("\n", "")

    assert text("documents") == "ItstandsinFrance."
    assert text("question") == "WhereistheEiffelTower?Helloworld,whoareyou?"
    assert text("system") == ("Answerthequestionwithcare." if FAMILIES[name].system else "")
    assert "Iamfine,thanks!" in text("response")
    assert "fine" not in text("other")


def test_prompt_regions_are_the_aligned_positions() -> None:
    """Boundary and response are apart from the prompt's regions, as training leaves them out."""
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    renderer = Renderer.for_tokenizer(tokenizer)
    encoded = encode([RECORD, replace(RECORD, documents=RECORD.documents[:1])], tokenizer, renderer, max_length=None)
    counted = 0
    for row, documents in zip(encoded.rows, (RECORD.documents, RECORD.documents[:1]), strict=True):
        regions = record_regions(tokenizer, renderer, RECORD, documents, row["labels"])
        counted += sum(region in PROMPT_REGIONS for region in regions)
    assert counted == encoded.report.aligned_tokens > 0
