"""The template for servers on the real data sets: its token ids are the trained prompt's."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfaug.data.prompts import Renderer
from selfaug.data.rag_template import rag_template
from selfaug.data.read import read_rows
from selfaug.data.record import Record
from tests.chatting import chat_tokenizer

pytestmark = pytest.mark.shared

DATA = {
    "squad/dev-v1.1.json": 4961,
    "hotpotqa-distractor": 100,
    "nq-retrieved-sample/test.jsonl": 17,
    "crag-sample/dev_data.jsonl.bz2": 10,
    "mctest/mc160.train.tsv": 280,
    **{
        f"shapes/{name}.jsonl": 1
        for name in ("coqa", "quac", "musique", "msmarco", "ragas_eval", "triviaqa_hf", "capital")
    },
}
MOST = 60


@pytest.mark.parametrize("kind", ["chat", "plain"])
@pytest.mark.parametrize("name", DATA)
def test_token_ids(name: str, kind: str, shared: Path, stories260k: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = chat_tokenizer() if kind == "chat" else AutoTokenizer.from_pretrained(stories260k)
    renderer = Renderer.for_tokenizer(tokenizer, order="best_first" if "hotpot" in name else "given")
    assert renderer.mode == kind
    template = rag_template(renderer, tokenizer)
    found = read_rows(shared / "data" / name, needs_documents=False).items
    records = [item for item in found if isinstance(item, Record)]
    assert len(records) >= DATA[name]
    assert any(record.documents for record in records) or name.startswith("nq")
    for record in records[:: max(len(records) // MOST, 1)]:
        system = [] if record.system is None else [{"role": "system", "content": record.system}]
        text = tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": record.question}],
            documents=[document.to_row() for document in record.documents],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == renderer.prompt_ids(tokenizer, record)
