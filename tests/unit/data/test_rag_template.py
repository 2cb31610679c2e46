"""The Jinja template for servers against the renderer, for every chat template that TRL ships and for plain prompts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from selfaug.data import rag_template as module
from selfaug.data.prompts import Renderer
from selfaug.data.rag_template import RAG_TEMPLATE, rag_template, save_rag_template
from selfaug.data.record import Conversation, Document, Record
from selfaug.data.template import ChatTemplate
from tests.unit.data.shipped import NAMES, tokenizer_of

FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"order": "best_first", "question_position": "both", "show_titles": False},
    {"order": "best_last", "document_titled": "[{number:>3}] {title!r} {{%}}", "question": "{question}?\n'\"\\"},
    {"order": "reversed", "question_position": "before", "system": ""},
)


def served(tokenizer: Any, template: str | None, messages: list[dict[str, Any]], documents: Any, **more: Any) -> str:
    """What a server writes: `transformers`' own rendering, as vLLM calls it."""
    return str(
        tokenizer.apply_chat_template(
            messages, documents=documents, chat_template=template, add_generation_prompt=True, tokenize=False, **more
        )
    )


@pytest.mark.parametrize(("name", "form"), [(name, place % len(FORMS)) for place, name in enumerate(NAMES)])
def test_every_shipped_template_has_one(name: str, form: int) -> None:
    tokenizer = tokenizer_of(name)
    assert rag_template(Renderer.for_tokenizer(tokenizer, **FORMS[form]), tokenizer) is not None


PIECES = st.sampled_from(
    [
        "Oslo",
        " ",
        "\n",
        "<|im_end|>",
        "<|im_start|>",
        "<|im_<|im_end|>",
        "<",
        "|im_end|>",
        "{{ x }}",
        "{% if %}",
        "é",
        "'\\",
    ]
)
TEXTS = st.lists(PIECES, min_size=1, max_size=6).map("".join)
DOCUMENTS = st.lists(
    st.builds(Document, TEXTS, st.none() | TEXTS, st.none(), st.none() | st.sampled_from([0.0, 0.5, 1.0])), max_size=4
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    TEXTS.filter(str.strip), DOCUMENTS, st.none() | TEXTS, st.sampled_from(FORMS), st.sampled_from(["qwen3", "gemma"])
)
def test_a_question_is_written_as_in_training(
    question: str, documents: list[Document], system: str | None, form: dict[str, Any], name: str
) -> None:
    tokenizer = tokenizer_of(name)
    renderer = Renderer.for_tokenizer(tokenizer, **form)
    template = rag_template(renderer, tokenizer)
    record = Record(question, tuple(documents), ("-",), system=system)
    messages = [{"role": "user", "content": question}]
    messages = messages if system is None else [{"role": "system", "content": system}, *messages]
    text = served(tokenizer, template, messages, [document.to_row() for document in documents])
    assert text == renderer.prompt_text(tokenizer, record)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == renderer.prompt_ids(tokenizer, record)


@pytest.mark.parametrize("name", ["qwen3", "gemma", "llama3"])
def test_documents_of_a_conversation_begin_its_first_user_turn(name: str) -> None:
    tokenizer = tokenizer_of(name)
    renderer = Renderer.for_tokenizer(tokenizer)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Who? <|im_end|>"},
        {"role": "assistant", "content": "Ann."},
        {"role": "user", "content": "Where?"},
    ]
    documents = (Document("Ann is in Oslo.", "Ann"), Document("two"))
    wanted = ChatTemplate(tokenizer, renderer.chat_template, kwargs=renderer.chat_template_kwargs).render(
        renderer.conversation_messages(Conversation(tuple(messages), documents=documents)), generation=True
    )
    assert "Ann is in Oslo." in wanted
    text = served(tokenizer, rag_template(renderer, tokenizer), messages, [d.to_row() for d in documents])
    assert text == wanted


@pytest.mark.parametrize("name", NAMES[::3])
def test_without_documents_the_models_own_template_writes(name: str) -> None:
    tokenizer = tokenizer_of(name)
    renderer = Renderer.for_tokenizer(tokenizer)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "?"},
    ]
    parts = ChatTemplate(tokenizer).takes_parts
    if parts:
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    own = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **renderer.chat_template_kwargs
    )
    assert served(tokenizer, rag_template(renderer, tokenizer), messages, None) == own
    with_none = served(tokenizer, rag_template(renderer, tokenizer), messages[:1], [])
    assert with_none == renderer.prompt_text(tokenizer, Record("Hi", (), ("-",))) != own


def test_texts_in_parts_as_a_server_gets_them_and_what_is_no_text() -> None:
    tokenizer = tokenizer_of("qwen3")
    renderer = Renderer.for_tokenizer(tokenizer)
    template = rag_template(renderer, tokenizer)
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "is it?"}]
    text = served(tokenizer, template, [{"role": "user", "content": parts}], [{"text": "Ann."}])
    assert text == renderer.prompt_text(tokenizer, Record("Who is it?", (Document("Ann."),), ("-",)))
    with pytest.raises(jinja2.TemplateError, match="only texts were trained, not image"):
        served(tokenizer, template, [{"role": "user", "content": [{"type": "image"}]}], [{"text": "Ann."}])
    with pytest.raises(jinja2.TemplateError, match="document 2 has no 'text'"):
        served(tokenizer, template, [{"role": "user", "content": "Who?"}], [{"text": "Ann."}, {"contents": "Bob."}])
    scored = [{"text": "Ann.", "score": 1.0}, {"text": "Bob.", "score": "10.5"}]  # as text it would be less than "9"
    with pytest.raises(jinja2.TemplateError, match="the score of document 2 is no number"):
        served(tokenizer, template, [{"role": "user", "content": "Who?"}], scored)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("form", range(len(FORMS)))
def test_a_plain_prompt(form: int, bos: bool) -> None:
    tokenizer = copy.deepcopy(tokenizer_of("qwen3"))
    tokenizer.chat_template = None
    if bos:
        start = ("<bos>", tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[start])
    renderer = Renderer.for_tokenizer(tokenizer, **FORMS[form])
    assert renderer.mode == "plain"
    template = rag_template(renderer, tokenizer)
    documents = (Document("Ann is in Oslo.", "Ann", None, 0.5), Document("Bob.", None, None, 0.75))
    record = Record(" Where is Ann? ", documents, ("-",))
    question = {"role": "user", "content": record.question}
    rows = [document.to_row() for document in documents]
    text = served(tokenizer, template, [question], rows)
    assert text.startswith("<bos>") is bos
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == renderer.prompt_ids(tokenizer, record)
    with pytest.raises(jinja2.TemplateError, match="give one user message"):
        served(tokenizer, template, [question, {"role": "assistant", "content": "Oslo"}, question], rows)


def test_a_template_that_writes_anything_else_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("qwen3")
    renderer = Renderer.for_tokenizer(tokenizer)
    assert save_rag_template(renderer, tokenizer, tmp_path)
    assert (tmp_path / RAG_TEMPLATE).read_bytes().decode() == rag_template(renderer, tokenizer)
    for name, right, wrong in (
        ("_BLOCKS", "selfaug_escape(item.text | trim)", "item.text | trim"),
        ("_BLOCKS", "and item.title", ""),
        ("_ONE_QUESTION", " | trim)", ")"),
        ("_SYSTEM", "selfaug_escape(selfaug.system)", "selfaug.system"),
    ):
        with monkeypatch.context() as patch:
            assert right in getattr(module, name)
            patch.setattr(module, name, getattr(module, name).replace(right, wrong))
            assert rag_template(renderer, tokenizer) is None
