"""A chat template in Jinja that writes the trained prompt from `documents=`, for servers that run no code of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from selfaug.data.layout import document
from selfaug.data.record import Document, Record
from selfaug.data.template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["RAG_TEMPLATE", "rag_template", "save_rag_template"]

RAG_TEMPLATE = "selfaug_rag_template.jinja"
"""Name of its file, beside the weights."""

# One namespace holds all that is set in loops; its name is the only one that the model's own template could share.
_ESCAPE = """
{%- macro selfaug_escape(text) -%}
  {%- set selfaug.text = text -%}
  {%- for special in SPECIALS -%}
    {%- set selfaug.text = selfaug.text | replace(special, special[0] ~ ' ' ~ special[1:]) -%}
  {%- endfor -%}
  {{- selfaug.text -}}
{%- endmacro -%}"""
_TEXT_OF = """
{%- macro selfaug_text(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- else -%}
    {%- for part in content or [] -%}
      {%- if part.type != 'text' -%}{{- raise_exception('only texts were trained, not ' ~ part.type) -}}{%- endif -%}
      {{- part.text -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}"""
_DOCUMENTS = """
{%- for item in documents or [] -%}
  {%- if item.text is not string -%}
    {{- raise_exception('document ' ~ loop.index ~ " has no 'text'") -}}
  {%- endif -%}
  {%- set selfaug.documents = selfaug.documents + [item] -%}
  {%- if item.score is not defined or item.score is none -%}
    {%- set selfaug.scored = false -%}
  {%- elif item.score is not number -%}
    {{- raise_exception('the score of document ' ~ loop.index ~ ' is no number') -}}
  {%- endif -%}
{%- endfor -%}"""
_ORDER = {
    "given": "",
    "reversed": "\n{%- set selfaug.documents = selfaug.documents | reverse | list -%}",
    "best_first": "\n{%- if selfaug.scored -%}"
    "{%- set selfaug.documents = selfaug.documents | sort(attribute='score', reverse=true) -%}{%- endif -%}",
    "best_last": "\n{%- if selfaug.scored -%}"
    "{%- set selfaug.documents = selfaug.documents | sort(attribute='score') -%}{%- endif -%}",
}
_BLOCKS = """
{%- for item in selfaug.documents -%}
  {%- set number = loop.index -%}
  {%- if TITLED and item.title -%}
    {%- set title = selfaug_escape(item.title) -%}
    {%- set header = DOCUMENT_TITLED -%}
  {%- else -%}
    {%- set header = DOCUMENT_UNTITLED -%}
  {%- endif -%}
  {%- set selfaug.blocks = selfaug.blocks + [(header ~ '\\n' ~ selfaug_escape(item.text | trim)) | trim] -%}
{%- endfor -%}"""
_SYSTEM = """
{%- set selfaug.system = SYSTEM -%}
{%- set selfaug.turns = messages -%}
{%- if messages and messages[0].role in ['system', 'developer'] -%}
  {%- set selfaug.system = selfaug_text(messages[0].content) -%}
  {%- set selfaug.turns = messages[1:] -%}
{%- endif -%}
{%- set selfaug.system = selfaug_escape(selfaug.system) if selfaug.system | trim else '' -%}"""
_ONE_QUESTION = """
{%- if selfaug.turns | length == 1 and selfaug.turns[0].role == 'user' -%}
  {%- set question = selfaug_escape(selfaug_text(selfaug.turns[0].content) | trim) -%}
  {%- set question = QUESTION -%}
  {%- set selfaug.turns = [{'role': 'user', 'content': (BEFORE + selfaug.blocks + AFTER) | join('\\n\\n')}] -%}"""
_CONVERSATION = """
{%- else -%}
  {%- if selfaug.turns | length == messages | length -%}{%- set selfaug.system = '' -%}{%- endif -%}
  {%- set selfaug.kept = [] -%}
  {%- set selfaug.placed = not selfaug.blocks -%}
  {%- for turn in selfaug.turns -%}
    {%- set selfaug.content = selfaug_escape(selfaug_text(turn.content)) -%}
    {%- if turn.role == 'user' and not selfaug.placed -%}
      {%- set selfaug.content = (selfaug.blocks | join('\\n\\n')) ~ '\\n\\n' ~ selfaug.content -%}
      {%- set selfaug.placed = true -%}
    {%- endif -%}
    {%- set selfaug.kept = selfaug.kept + [dict(turn, content=selfaug.content)] -%}
  {%- endfor -%}
  {%- set selfaug.turns = selfaug.kept -%}
{%- endif -%}"""
_REFUSED = """
{%- else -%}
  {{- raise_exception('this model was trained on single questions: give one user message') -}}
{%- endif -%}"""
_FOLD = {
    True: """
{%- if selfaug.system -%}
  {%- set selfaug.turns = [{'role': 'system', 'content': selfaug.system}] + selfaug.turns -%}
{%- endif -%}""",
    False: """
{%- if selfaug.system -%}
  {%- set selfaug.turns = [dict(selfaug.turns[0], content=selfaug.system ~ '\\n\\n' ~ selfaug.turns[0].content)]
    + selfaug.turns[1:] -%}
{%- endif -%}""",
}
_PARTS = """
{%- set selfaug.kept = [] -%}
{%- for turn in selfaug.turns -%}
  {%- set selfaug.kept = selfaug.kept + [dict(turn, content=[{'type': 'text', 'text': turn.content}])] -%}
{%- endfor -%}
{%- set selfaug.turns = selfaug.kept -%}"""


def rag_template(renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the template, or ``None`` where it does not write the renderer's prompts to the character.

    ``apply_chat_template(messages, documents=[...], chat_template=...)`` then equals :meth:`Renderer.prompt_text`
    for one user message, whose text is the question, with or without a system message. In a conversation, documents
    begin the first user turn. Without ``documents`` the model's own template sees the messages as they are; an empty
    list means a question without documents.

    Args:
        renderer: Renderer of the trained prompt.
        tokenizer: Tokenizer that the renderer was made for.
    """
    text = _written(renderer, tokenizer)
    return text if all(_same(text, record, renderer, tokenizer) for record in _probes(renderer)) else None


def save_rag_template(renderer: Renderer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Write the template to ``folder/selfaug_rag_template.jinja``; return whether there is one."""
    text = rag_template(renderer, tokenizer)
    if text is not None:
        (folder / RAG_TEMPLATE).write_bytes(text.encode())  # text mode could change line ends
    return text is not None


def _written(renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> str:
    chat = renderer.mode == "chat"
    question = "[question]"
    body = "".join(
        [_DOCUMENTS, _ORDER[renderer.order], _BLOCKS, _SYSTEM, _ONE_QUESTION, _CONVERSATION if chat else _REFUSED]
    )
    for name, value in {
        "TITLED": _literal(renderer.show_titles),
        "DOCUMENT_TITLED": _filled(renderer.document_titled),
        "DOCUMENT_UNTITLED": _filled(renderer.document_untitled),
        "SYSTEM": _literal(renderer.system),
        "BEFORE": question if renderer.question_position != "after" else "[]",
        "AFTER": question if renderer.question_position != "before" else "[]",
        "QUESTION": _filled(renderer.question),
    }.items():
        body = body.replace(name, value, 1)
    start = (
        "{%- set selfaug = namespace(text='', documents=[], scored=true, blocks=[], system='', turns=[], kept=[], "
        f"content='', placed=false) -%}}{_ESCAPE.replace('SPECIALS', _literal(list(renderer.specials)), 1)}{_TEXT_OF}"
    )
    if not chat:
        ids = tokenizer("x")["input_ids"][:1]
        bos = "{{- bos_token -}}" if ids and ids == [tokenizer.bos_token_id] else ""
        texts = "([selfaug.system] if selfaug.system else []) + [selfaug.turns[0].content]"
        whole = f"{{{{- ({texts}) | join('\\n\\n') -}}}}"
        return f"{start}{body}\n{bos}{whole}{{{{- {_literal(chr(10) + renderer.answer_cue)} -}}}}"
    template = ChatTemplate(tokenizer, renderer.chat_template, kwargs=renderer.chat_template_kwargs)
    variables = "".join(
        f"\n{{%- if {name} is not defined -%}}{{%- set {name} = {_literal(value)} -%}}{{%- endif -%}}"
        for name, value in renderer.chat_template_kwargs.items()
    )
    body += _FOLD[renderer.system_role] + (_PARTS if template.takes_parts else "")
    return (
        f"{start}{variables}\n{{%- if documents is defined and documents is not none -%}}{body}\n"
        "{%- set messages = selfaug.turns -%}\n{%- set documents = none -%}\n{%- endif -%}\n"
        # An output instead of a tag: a tag would take the line end with which the model's template may begin.
        f"{{{{- '' }}}}{template.source}"
    )


def _literal(value: Any) -> str:
    """A value as Jinja writes it, which is JSON but for the three constants."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _filled(form: str) -> str:
    """A line with placeholders as an expression: ``Document {number}`` is ``("Document " ~ number)``."""
    pieces = []
    for text, name, spec, conversion in Formatter().parse(form):
        pieces += [_literal(text)] if text else []
        if name is not None:
            whole = f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
            plain = not spec and not conversion
            pieces.append(name if plain else f"{_literal(whole)}.format({name}={name})")
    return f"({' ~ '.join(pieces) or _literal('')})"


def _probes(renderer: Renderer) -> Iterator[Record]:
    """Records of each form that the template has a branch for, with control strings in every text."""
    special = renderer.specials[0] if renderer.specials else "<|end|>"
    texts = [
        document({"text": f" one {special}\n", "title": f"A {special}", "score": 0.25}),
        document({"text": "two {number} %", "score": 0.5}),
        document({"text": "three", "title": "", "score": 0.5}),
    ]
    unscored: list[Document] = [document("a"), *texts]
    for documents in ((), texts, unscored):
        for system in (None, "", f"Be {special} brief."):
            yield Record(f" Who {special} is it? ", tuple(documents), ("-",), system=system)


def _same(text: str, record: Record, renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> bool:
    import jinja2

    system = [] if record.system is None else [{"role": "system", "content": record.system}]
    try:
        written = tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": record.question}],
            documents=[item.to_row() for item in record.documents],
            chat_template=text,
            add_generation_prompt=True,
            tokenize=False,
        )
    except (jinja2.TemplateError, TypeError, ValueError):
        return False
    wanted = renderer.prompt_text(tokenizer, record)
    if renderer.mode == "plain":  # where a server adds no BOS of its own
        written = written.removeprefix(tokenizer.bos_token or "")
    return bool(written == wanted)
