"""One good row of each format, in the manner of its public schema, and the record that it means."""

from __future__ import annotations

from typing import Any

from selfaug.data.record import Conversation, Document, Record

PAGE = (
    "<html><head><title>x</title></head><body><nav>Menu</nav>"
    "<h1>Rain</h1><p>It falls in&nbsp;<b>May</b>.</p></body></html>"
)

ROWS: dict[str, dict[str, Any]] = {
    "canonical": {"question": "When?", "documents": [{"text": "It falls in May."}], "answer": "May"},
    "conversation": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    "squad article": {
        "title": "Rain_(weather)",
        "paragraphs": [
            {
                "context": "It falls in May.",
                "qas": [
                    {"id": "a", "question": "When?", "answers": [{"text": "May", "answer_start": 12}] * 2},
                    {"id": "b", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": []},
                ],
            }
        ],
    },
    "squad columns": {
        "id": "a",
        "title": "Rain_(weather)",
        "context": "It falls in May.",
        "question": "When?",
        "answers": {"text": ["May"], "answer_start": [12]},
    },
    "hotpotqa pairs": {
        "_id": "h",
        "question": "When?",
        "answer": "May",
        "type": "bridge",
        "supporting_facts": [["Rain", 1]],
        "context": [["Snow", ["It lies."]], ["Rain", ["It is wet.", " It falls in May."]]],
    },
    "hotpotqa columns": {
        "id": "h",
        "question": "When?",
        "answer": "May",
        "supporting_facts": {"title": ["Rain"], "sent_id": [1]},
        "context": {"title": ["Snow", "Rain"], "sentences": [["It lies."], ["It is wet.", " It falls in May."]]},
    },
    "ctxs DPR": {
        "question": "When?",
        "answers": ["May", "in May"],
        "ctxs": [
            {"id": "wiki:9", "title": "Rain", "text": "It falls in May.", "score": "81.5", "has_answer": True},
            {"id": 3, "title": "", "text": "It lies.", "score": 80},
        ],
    },
    "ctxs FlashRAG": {
        "id": "test_0",
        "question": "When?",
        "golden_answers": ["May"],
        "output": {"retrieval_result": [{"id": "9", "contents": '"Rain"\nIt falls in May.'}]},
    },
    "crag": {
        "interaction_id": "i",
        "query": "when?",
        "answer": "may",
        "alternative_answers": '["in may", "may"]',
        "search_results": [
            {"page_name": "R &amp; S", "page_url": "u", "page_snippet": "no", "page_result": PAGE},
            {"page_name": "R &amp; S", "page_url": "v", "page_snippet": "no", "page_result": PAGE},
            {"page_name": "", "page_url": "", "page_snippet": "a <b>snippet</b>", "page_result": ""},
            {"page_name": "empty", "page_url": "w", "page_snippet": "", "page_result": ""},
        ],
    },
    "raft": {
        "id": "seed_task_0",
        "type": "general",
        "question": "When?",
        "context": {"title": [["placeholder_title"] * 2], "sentences": [["It lies.", "It falls in May."]]},
        "oracle_context": "It falls in May.",
        "cot_answer": "##begin_quote##It falls in May.##end_quote## So: <ANSWER>: May",
        "instruction": "<DOCUMENT>It lies.</DOCUMENT>\nWhen?",
    },
    "followrag": {
        "key": 0,
        "type": "ifnq",
        "prompt": "Given the following information: ...",
        "question": "when?",
        "answer_gold": "May/in May",
        "question_with_instrs": "When? Use no commas.",
        "instruction_id_list": ["format_no_commas"],
        "kwargs": [{}],
        "passages": [{"title": "Rain", "content": "It falls in May."}],
    },
    "rag-instruct": {"question": "When?", "answer": "In May, it seems.", "documents": ["It lies.", "It falls in May."]},
    "trl pair": {"prompt": "When? ", "completion": "May"},
    "trl chat pair": {
        "prompt": [{"role": "user", "content": "When?"}],
        "completion": [{"role": "assistant", "content": "May"}],
    },
    "trl text": {"text": "It falls in May."},
    "trl tokens": {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]},
}

_MAY = Document("It falls in May.")
_HOTPOT = Record(
    "When?",
    (Document("It lies.", "Snow", score=0.0), Document("It is wet. It falls in May.", "Rain", score=1.0)),
    ("May",),
    "h",
)
_SQUAD = (Document("It falls in May.", "Rain (weather)"),)

# What each row means, worked out by hand.
MEANING: dict[str, list[Any]] = {
    "canonical": [Record("When?", (_MAY,), ("May",))],
    "conversation": [Conversation(tuple(ROWS["conversation"]["messages"]))],
    "squad article": [Record("When?", _SQUAD, ("May",), "a"), Record("Why?", _SQUAD, (), "b", answerable=False)],
    "squad columns": [Record("When?", _SQUAD, ("May",), "a")],
    "hotpotqa pairs": [_HOTPOT],
    "hotpotqa columns": [_HOTPOT],
    "ctxs DPR": [
        Record(
            "When?",
            (Document("It falls in May.", "Rain", "wiki:9", 81.5), Document("It lies.", None, "3", 80.0)),
            ("May", "in May"),
        )
    ],
    "ctxs FlashRAG": [Record("When?", (Document("It falls in May.", "Rain", "9"),), ("May",), "test_0")],
    "crag": [
        Record(
            "when?", (Document("Rain\nIt falls in May.", "R & S", "u"), Document("a snippet")), ("may", "in may"), "i"
        )
    ],
    "raft": [
        Record(
            "When?",
            (Document("It lies.", score=0.0), Document("It falls in May.", score=1.0)),
            (ROWS["raft"]["cot_answer"], "May"),
            "seed_task_0",
        )
    ],
    "followrag": [Record("when?", (Document("It falls in May.", "Rain"),), ("May", "in May", "May/in May"), "0")],
    "rag-instruct": [Record("When?", (Document("It lies."), _MAY), ("In May, it seems.",))],
    "trl pair": [ROWS["trl pair"]],
    "trl chat pair": [ROWS["trl chat pair"]],
    "trl text": [ROWS["trl text"]],
    "trl tokens": [ROWS["trl tokens"]],
}


def format_of(sample: str) -> str:
    """The format's name of a sample's name."""
    return {"conversation": "canonical"}.get(sample, sample.split()[0])
