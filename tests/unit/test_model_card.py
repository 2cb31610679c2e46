from __future__ import annotations

import pytest
import yaml

from selfaug.run.model_card import escape, model_card

MANIFEST = {
    "model": {"name": "owner/name"},
    "data": {"train": {"rows": 3, "files": [{"path": "/home/someone/secret/data.jsonl"}]}},
    "versions": {"torch": "2.13.0", "missing": None},
}
CONFIG = {"method": "selfaug", "alpha": 2, "use_peft": True, "lora_target_modules": ["a", "b"]}


def header_of(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card[4 : card.index("\n---\n", 4)])


def test_what_the_card_says() -> None:
    card = model_card(MANIFEST, CONFIG)
    assert header_of(card) == {"library_name": "peft", "base_model": "owner/name", "tags": ["selfaug", "rag", "lora"]}
    assert "| train | 3 | data.jsonl |" in card
    assert "from_pretrained('owner/name')" in card
    assert "| alpha | 2 |" in card
    assert "torch" in card
    assert "missing" not in card
    assert "Licence" in card
    assert "Nothing yet" in card
    assert "Nothing yet" not in model_card(MANIFEST, CONFIG, measured=["EM 0.5"])


def test_folders_of_the_machine_stay_on_it() -> None:
    card = model_card({**MANIFEST, "model": {"name": "/home/someone/models/base"}}, CONFIG)
    assert "/home/someone" not in card
    assert "base_model" not in header_of(card)
    assert "path/to/base" in card


def test_alignment_is_claimed_only_where_there_was_some() -> None:
    assert "held to the base" in model_card(MANIFEST, CONFIG)
    assert "held to the base" not in model_card(MANIFEST, {**CONFIG, "method": "sft", "alpha": 0})


def test_a_full_model_is_no_adapter() -> None:
    card = model_card(MANIFEST, {**CONFIG, "use_peft": False})
    assert header_of(card)["library_name"] == "transformers"
    assert "PeftModel" not in card


@pytest.mark.parametrize(
    "name",
    [
        "a|b",
        "a\n---\nlicense: mit",
        "<script>alert(1)</script>",
        "`rm`",
        "```\n# heading",
        "[x](http://a)",
        "*a*",
        "'''",
    ],
)
def test_a_hostile_name_breaks_neither_table_nor_header_nor_code(name: str) -> None:
    plain = model_card({**MANIFEST, "model": {"name": "x"}}, CONFIG)
    data = {"train": {"rows": 1, "files": [{"path": name}]}}
    card = model_card({**MANIFEST, "model": {"name": name}, "data": data}, {**CONFIG, "method": name})
    assert header_of(card)["base_model"] == name
    assert "license" not in header_of(card)
    body = card[card.index("\n---\n", 4) :]
    assert "<script>" not in body.split("## How to load")[0] + body.split("## Data")[1]
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        line if not line.startswith("# ") else f"# {escape(name)}, tuned on documents with selfaug"
        for line in plain[plain.index("\n---\n", 4) :].splitlines()
        if line.startswith("#")
    ]
    table = [line for line in body.split("## Data")[1].split("##")[0].splitlines() if line.startswith("|")]
    # Cell borders are the bars that no backslash takes away.
    assert all(line.replace("\\|", "").count("|") == 4 for line in table)
    assert len(table) == 3
