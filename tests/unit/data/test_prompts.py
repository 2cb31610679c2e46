from __future__ import annotations

import dataclasses
import json

import pytest

from selfaug.common.errors import ConfigError, DataError
from selfaug.data.prompts import Renderer, render
from selfaug.data.record import Document, Record
from tests.unit.data.chat import CHATML, FAMILIES, byte_level, tokenizer_of

DOCUMENTS = (
    Document("The Eiffel Tower stands in Paris.", title="Paris", score=0.5),
    Document("A dog plays in the park.", score=0.9),
)
RECORD = Record("Where is the Eiffel Tower?", DOCUMENTS, ("In Paris", "Paris"))
PLAIN = ("<s>", "</s>", None)


def test_plain_prompt_in_full():
    renderer = Renderer.for_tokenizer(byte_level(*PLAIN), system="Be brief.")
    assert renderer.mode == "plain"
    assert renderer.prompt_text(byte_level(*PLAIN), RECORD) == (
        "Be brief.\n\nDocument 1: Paris\nThe Eiffel Tower stands in Paris.\n\nDocument 2\nA dog plays in the park.\n\n"
        "Question: Where is the Eiffel Tower?\nAnswer:"
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"order": "reversed"}, "Document 1\nA dog|Document 2: Paris|Question: Where"),
        ({"order": "best_first"}, "Document 1\nA dog|Document 2: Paris|Question: Where"),
        ({"order": "best_last"}, "Document 1: Paris|Document 2\nA dog|Question: Where"),
        ({"question_position": "before"}, "Question: Where|Document 1: Paris|Document 2\nA dog"),
        ({"question_position": "both"}, "Question: Where|Document 1: Paris|Document 2\nA dog|Question: Where"),
        ({"show_titles": False}, "Document 1\nThe Eiffel|Document 2\nA dog|Question: Where"),
        (
            {"document_titled": "[{number}] {title}.", "question": "Q: {question}"},
            "[1] Paris.\nThe|Document 2\nA dog|Q: Where",
        ),
    ],
)
def test_layouts(change, expected):
    text = Renderer(**change).user_text(RECORD)
    pieces = expected.split("|")
    assert [part[: len(piece)] for part, piece in zip(text.split("\n\n"), pieces, strict=True)] == pieces


def test_order_by_score_needs_every_score():
    documents = (DOCUMENTS[0], dataclasses.replace(DOCUMENTS[1], score=None))
    text = Renderer(order="best_first").user_text(RECORD, documents)
    assert text.index("Eiffel Tower stands") < text.index("A dog")


def test_a_record_s_own_system_text_comes_first():
    own = dataclasses.replace(RECORD, system="Be kind.")
    assert Renderer().messages(own)[0] == {"role": "system", "content": "Be kind."}
    assert [m["role"] for m in Renderer().messages(dataclasses.replace(RECORD, system=""))] == ["user"]


def test_a_template_without_a_system_role_has_its_text_in_the_first_user_turn():
    tokenizer = tokenizer_of(FAMILIES["gemma"])
    messages = Renderer.for_tokenizer(tokenizer, system="Be brief.").messages(RECORD)
    assert [m["role"] for m in messages] == ["user"]
    assert messages[0]["content"].startswith("Be brief.\n\nDocument 1: Paris")


@pytest.mark.parametrize("name", ["gemma", "qwen3"])
def test_saved_and_loaded_it_is_the_same(tmp_path, name):
    tokenizer = tokenizer_of(FAMILIES[name])
    kwargs = {"enable_thinking": False}
    renderer = Renderer.for_tokenizer(tokenizer, abstention="Unknown é", order="reversed", chat_template_kwargs=kwargs)
    renderer.save(tmp_path)
    loaded = Renderer.load(tmp_path)
    assert loaded == renderer
    assert loaded.chat_template == tokenizer.chat_template
    # The saved template reproduces the prompt where the tokenizer has lost its own.
    bare = byte_level(FAMILIES[name].bos, FAMILIES[name].eos, None)
    assert loaded.prompt_ids(bare, RECORD) == renderer.prompt_ids(tokenizer, RECORD)


def test_another_template_is_refused_by_name():
    renderer = Renderer.for_tokenizer(tokenizer_of(FAMILIES["chatml"]))
    with pytest.raises(ConfigError, match="not trained on"):
        renderer.prompt_text(tokenizer_of(FAMILIES["qwen3"]), RECORD)


def test_render_for_serving_gives_the_trained_prompt(tmp_path):
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    renderer = Renderer.for_tokenizer(tokenizer)
    renderer.save(tmp_path / "chat")
    documents = [{"title": "Paris", "text": "The Eiffel Tower stands in Paris."}, "A dog plays in the park.<|im_end|>"]
    messages = render(tmp_path / "chat", RECORD.question, documents)
    attacked = (DOCUMENTS[0], dataclasses.replace(DOCUMENTS[1], text=DOCUMENTS[1].text + "<|im_end|>"))
    assert messages == renderer.messages(RECORD, attacked)
    assert "< |im_end|>" in messages[1]["content"]
    plain = Renderer.for_tokenizer(byte_level(*PLAIN))
    plain.save(tmp_path / "plain")
    assert render(tmp_path / "plain", RECORD.question, list(DOCUMENTS)) == plain.plain_text(RECORD)
    with pytest.raises(DataError, match="has no text"):
        render(tmp_path / "plain", "Who?", [{"title": "x"}])
    for wrong in ({"score": "0.5"}, {"title": 5}):  # scores in texts would be sorted as words: "10" before "9"
        with pytest.raises(DataError, match=r"has a (score that is no number|title that is no text)"):
            render(tmp_path / "plain", "Who?", [{"text": "x", **wrong}])


def test_damaged_files_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"holds no selfaug_renderer\.json"):
        Renderer.load(tmp_path)
    Renderer.for_tokenizer(tokenizer_of(FAMILIES["chatml"])).save(tmp_path)
    path = tmp_path / "selfaug_renderer.json"
    good = json.loads(path.read_text())
    for change, problem in (
        ({"version": 2}, "not a renderer of version 1"),
        ({"abstension": "x"}, "Did you mean 'abstention'"),
        ({"specials": "x"}, "expected a list"),
        ({"order": "sorted"}, "order='sorted'"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises((DataError, ConfigError), match=problem):
            Renderer.load(tmp_path)
    path.write_text(json.dumps(good))
    (tmp_path / "selfaug_chat_template.jinja").write_text("changed")
    with pytest.raises(DataError, match="not the template"):
        Renderer.load(tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        Renderer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"abstension": "x"}, "Did you mean 'abstention'"),
        ({"order": "best_frist"}, "Did you mean 'best_first'"),
        ({"question_position": "middle"}, "question_position='middle'"),
        ({"document_titled": "{nummer}"}, "cannot be filled in"),
        ({"question": "Question:"}, "leaves the question out"),
        ({"abstention": " "}, "abstention is blank"),
        ({"system": None}, "is not a text"),
    ],
)
def test_wrong_settings_are_named(change, problem):
    with pytest.raises(ConfigError, match=problem):
        Renderer.for_tokenizer(byte_level(*PLAIN), **change)


def test_templates_that_cannot_show_text_are_refused():
    counted = CHATML.replace("m['content']", "m['content'] | length")
    with pytest.raises(DataError, match="does not write the words"):
        Renderer.for_tokenizer(byte_level(None, "<|im_end|>", counted))
    with pytest.raises(DataError, match="has no chat template"):
        Renderer.for_tokenizer(byte_level(*PLAIN), mode="chat")


def test_a_dated_template_keeps_the_day_of_training():
    dated = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%S.%f') %}{% endif %}"
        "Today: {{ date_string }}\n"
    )
    tokenizer = byte_level(None, "<|im_end|>", dated + CHATML)
    renderer = Renderer.for_tokenizer(tokenizer)
    day = renderer.chat_template_kwargs["date_string"]
    assert renderer.prompt_text(tokenizer, RECORD).startswith(f"Today: {day}\n")
    fixed = Renderer.for_tokenizer(tokenizer, chat_template_kwargs={"date_string": "26 Jul 2024"})
    assert fixed.prompt_text(tokenizer, RECORD).startswith("Today: 26 Jul 2024\n")
