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
    "quac article": {
        "title": "Rain",
        "section_title": "When",
        "paragraphs": [
            {
                "id": "p",
                "context": "It falls in May. CANNOTANSWER",
                "qas": [
                    {
                        "id": "p_q#0",
                        "question": "When?",
                        "answers": [{"text": "May", "answer_start": 12}, {"text": "CANNOTANSWER", "answer_start": 17}],
                        "orig_answer": {"text": "in May", "answer_start": 9},
                        "followup": "y",
                    },
                    {
                        "id": "p_q#1",
                        "question": "Why?",
                        "answers": [{"text": "CANNOTANSWER", "answer_start": 17}],
                        "orig_answer": {"text": "CANNOTANSWER", "answer_start": 17},
                    },
                    {
                        "id": "p_q#2",
                        "question": "What falls?",
                        "answers": [{"text": "It", "answer_start": 0}],
                        "orig_answer": {"text": "It", "answer_start": 0},
                    },
                ],
            }
        ],
    },
    "quac columns": {
        "dialogue_id": "d",
        "wikipedia_page_title": "Rain",
        "context": "It falls in May. CANNOTANSWER",
        "turn_ids": ["d_q#0", "d_q#1"],
        "questions": ["When?", "Why?"],
        "answers": {"texts": [["May"], ["CANNOTANSWER"]], "answer_starts": [[12], [17]]},
        "orig_answers": {"texts": ["in May", "CANNOTANSWER"], "answer_starts": [9, 17]},
    },
    "coqa columns": {
        "source": "race",
        "story": "It falls in May.",
        "questions": ["When?", "Why?"],
        "answers": {"input_text": ["May", "unknown"], "answer_start": [12, -1], "answer_end": [15, -1]},
    },
    "coqa released": {
        "id": "c",
        "story": "It falls in May.",
        "questions": [{"input_text": "When?", "turn_id": 1}, {"input_text": "What?", "turn_id": 2}],
        "answers": [
            {"input_text": "May", "span_text": "in May", "turn_id": 1},
            {"input_text": "It", "span_text": "It", "turn_id": 2},
        ],
    },
    "musique": {
        "id": "2hop__1_2",
        "question": "When?",
        "paragraphs": [
            {"idx": 0, "title": "Snow", "paragraph_text": "It lies.", "is_supporting": False},
            {"idx": 1, "title": "Rain", "paragraph_text": "It falls in May.", "is_supporting": True},
        ],
        "question_decomposition": [{"id": 1}],
        "answer": "May",
        "answer_aliases": ["in May"],
        "answerable": True,
    },
    "musique unanswerable": {
        "id": "2hop__1_2",
        "question": "When?",
        "paragraphs": [{"idx": 0, "title": "Snow", "paragraph_text": "It lies.", "is_supporting": False}],
        "answer": "May",
        "answer_aliases": [],
        "answerable": False,
    },
    "msmarco": {
        "query_id": 7,
        "query": "when",
        "query_type": "NUMERIC",
        "answers": ["In May."],
        "wellFormedAnswers": [],
        "passages": {
            "is_selected": [0, 1],
            "passage_text": ["It lies.", "It falls in May."],
            "url": ["http://s", "http://r"],
        },
    },
    "msmarco unanswerable": {
        "query_id": 7,
        "query": "when",
        "answers": ["No Answer Present."],
        "passages": [{"is_selected": 0, "passage_text": "It lies.", "url": "http://s"}],
    },
    "triviaqa": {
        "question": "When?",
        "question_id": "tc_1",
        "answer": {"value": "May", "aliases": ["May", "Maying"], "normalized_value": "may", "type": "WikipediaEntity"},
        "entity_pages": {"title": ["Rain"], "wiki_context": ["It falls in May."], "filename": ["Rain.txt"]},
        "search_results": {
            "title": ["Empty", "Snow"],
            "search_context": ["", "It lies."],
            "rank": [0, 1],
            "url": ["a", "b"],
        },
    },
    "dpr": {
        "dataset": "nq_train_psgs_w100",
        "question": "When?",
        "answers": ["May"],
        "positive_ctxs": [{"title": "Rain", "text": "It falls in May.", "score": 1000, "passage_id": "9"}],
        "negative_ctxs": [],
        "hard_negative_ctxs": [{"title": "Snow", "text": "It lies.", "score": 14.2, "passage_id": "3"}],
    },
    "pubmedqa": {
        "pubid": 21,
        "question": "Does it rain in May?",
        "context": {"contexts": ["It lies.", "It falls in May."], "labels": ["AIM", "RESULTS"], "meshes": ["Rain"]},
        "long_answer": "It seems so.",
        "final_decision": "yes",
    },
    "pubmedqa released": {
        "QUESTION": "Does it rain in May?",
        "CONTEXTS": ["It falls in May."],
        "LABELS": ["RESULTS"],
        "MESHES": [],
        "LONG_ANSWER": "It seems so.",
        "final_decision": "yes",
    },
    "ragas": {
        "user_input": "When?",
        "retrieved_contexts": ["It lies.", "It falls in May."],
        "reference_contexts": ["It falls in May."],
        "response": "In June, I think.",
        "reference": "May",
    },
    "ragas old": {"question": "When?", "contexts": ["It lies."], "answer": "June", "ground_truths": ["May", "in May"]},
    "llamaindex": {
        "query": "When?",
        "query_by": {"model_name": "m", "type": "ai"},
        "reference_contexts": ["It falls in May."],
        "reference_answer": "May",
        "reference_answer_by": {"model_name": "m", "type": "ai"},
    },
    "langsmith": {
        "inputs": {"question": "When?"},
        "outputs": {
            "answer": "May",
            "documents": [{"page_content": "It falls in May.", "metadata": {"title": "Rain"}}],
        },
    },
    "alpaca": {"instruction": "When?", "input": "It falls in May.", "output": "May", "text": "Below is ..."},
    "alpaca talk": {"instruction": "Say hello.", "input": "", "output": "Hello", "system": "Be brief."},
    "alpaca history": {
        "instruction": "Why?",
        "input": "It falls in May.",
        "output": "It is wet.",
        "history": [["When?", "May"]],
    },
    "dolly": {"instruction": "When?", "context": "It falls in May.", "response": "May", "category": "closed_qa"},
    "dolly talk": {"instruction": "Say hello.", "context": "", "response": "Hello", "category": "open_qa"},
    "sharegpt": {
        "system": "Be brief.",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    },
    "sharegpt calls": {
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": '{"name": "rain", "arguments": {"month": "May"}}'},
            {"from": "observation", "value": "yes"},
            {"from": "gpt", "value": "It does."},
        ],
        "tools": '[{"name": "rain"}]',
    },
    "named": {"query": "When?", "context": "It falls in May.", "response": "May"},
    "named capitals": {
        "Question": "When?",
        "Retrieved Contexts": ["It lies."],
        "Ground Truth": "May",
        "Answer": "June",
    },
    "named documents": {
        "question": "When?",
        "answer": "May",
        "context": [{"page_content": "It falls in May.", "metadata": {"source": "r.txt", "title": "Rain"}}],
    },
    "named nodes": {
        "query": "When?",
        "response": "May",
        "source_nodes": [{"node": {"id_": "n", "text": "It falls in May.", "metadata": {}}, "score": 0.5}],
    },
    "named keys": {"question": "When?", "answer": "May", "documents": {"s": "It lies.", "r": "It falls in May."}},
    "named unanswerable": {"question": "When?", "context": "It lies.", "answer": None, "is_impossible": True},
    "canonical text": {"question": "When?", "documents": "It falls in May.", "answer": "May"},
    "canonical developer": {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ]
    },
    "trl pair": {"prompt": "When? ", "completion": "May"},
    "trl chat pair": {
        "prompt": [{"role": "user", "content": "When?"}],
        "completion": [{"role": "assistant", "content": "May"}],
    },
    "trl text": {"text": "It falls in May."},
    "trl tokens": {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]},
}


def _talk(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple({"role": role, "content": content} for role, content in turns))


EARLIER = "Earlier questions and answers:\n"
_MAY = Document("It falls in May.")
_HOTPOT = Record(
    "When?",
    (Document("It lies.", "Snow", gold=False), Document("It is wet. It falls in May.", "Rain", gold=True)),
    ("May",),
    "h",
)
_SECTION = (Document("It falls in May.", "Rain"),)
_HOTPOT_LIKE = (Document("It lies.", "Snow", gold=False), Document("It falls in May.", "Rain", gold=True))
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
            (Document("It falls in May.", "Rain", "wiki:9", 81.5, True), Document("It lies.", None, "3", 80.0)),
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
            (Document("It lies.", gold=False), Document("It falls in May.", gold=True)),
            (ROWS["raft"]["cot_answer"], "May"),
            "seed_task_0",
        )
    ],
    "followrag": [Record("when?", (Document("It falls in May.", "Rain"),), ("May", "in May", "May/in May"), "0")],
    "rag-instruct": [Record("When?", (Document("It lies."), _MAY), ("In May, it seems.",))],
    "quac article": [
        Record("When?", _SECTION, ("in May", "May"), "p_q#0"),
        Record(f"{EARLIER}When?\nin May\n\nWhy?", _SECTION, (), "p_q#1", answerable=False),
        Record(f"{EARLIER}When?\nin May\nWhy?\n(no answer)\n\nWhat falls?", _SECTION, ("It",), "p_q#2"),
    ],
    "quac columns": [
        Record("When?", _SECTION, ("in May",), "d"),
        Record(f"{EARLIER}When?\nin May\n\nWhy?", _SECTION, (), "d", answerable=False),
    ],
    "coqa columns": [
        Record("When?", (_MAY,), ("May",)),
        Record(f"{EARLIER}When?\nMay\n\nWhy?", (_MAY,), (), answerable=False),
    ],
    "coqa released": [
        Record("When?", (_MAY,), ("May",), "c.0"),
        Record(f"{EARLIER}When?\nMay\n\nWhat?", (_MAY,), ("It",), "c.1"),
    ],
    "musique": [Record("When?", _HOTPOT_LIKE, ("May", "in May"), "2hop__1_2")],
    "musique unanswerable": [Record("When?", _HOTPOT_LIKE[:1], (), "2hop__1_2", answerable=False)],
    "msmarco": [
        Record(
            "when",
            (
                Document("It lies.", None, "http://s", gold=False),
                Document("It falls in May.", None, "http://r", gold=True),
            ),
            ("In May.",),
            "7",
        )
    ],
    "msmarco unanswerable": [
        Record("when", (Document("It lies.", None, "http://s", gold=False),), (), "7", answerable=False)
    ],
    "triviaqa": [
        Record("When?", (Document("It lies.", "Snow"), Document("It falls in May.", "Rain")), ("May", "Maying"), "tc_1")
    ],
    "dpr": [
        Record(
            "When?",
            (Document("It falls in May.", "Rain", "9", 1000.0, True), Document("It lies.", "Snow", "3", 14.2, False)),
            ("May",),
        )
    ],
    "pubmedqa": [
        Record(
            "Does it rain in May?",
            (Document("It lies.", "AIM"), Document("It falls in May.", "RESULTS")),
            ("yes",),
            "21",
        )
    ],
    "pubmedqa released": [Record("Does it rain in May?", (Document("It falls in May.", "RESULTS"),), ("yes",))],
    "ragas": [Record("When?", (Document("It lies."), _MAY), ("May",))],
    "ragas old": [Record("When?", (Document("It lies."),), ("May", "in May"))],
    "llamaindex": [Record("When?", (_MAY,), ("May",))],
    "langsmith": [Record("When?", (Document("It falls in May.", "Rain"),), ("May",))],
    "alpaca": [Record("When?", (_MAY,), ("May",))],
    "alpaca talk": [_talk(("system", "Be brief."), ("user", "Say hello."), ("assistant", "Hello"))],
    "alpaca history": [Record(f"{EARLIER}When?\nMay\n\nWhy?", (_MAY,), ("It is wet.",))],
    "dolly": [Record("When?", (_MAY,), ("May",))],
    "dolly talk": [_talk(("user", "Say hello."), ("assistant", "Hello"))],
    "sharegpt": [_talk(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))],
    "sharegpt calls": [
        Conversation(
            (
                {"role": "user", "content": "Rain?"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "rain", "arguments": {"month": "May"}}}],
                },
                {"role": "tool", "content": "yes"},
                {"role": "assistant", "content": "It does."},
            ),
            tools=({"name": "rain"},),
        )
    ],
    "named": [Record("When?", (_MAY,), ("May",))],
    "named capitals": [Record("When?", (Document("It lies."),), ("May",))],
    "named documents": [Record("When?", (Document("It falls in May.", "Rain"),), ("May",))],
    "named nodes": [Record("When?", (Document("It falls in May.", None, "n", 0.5),), ("May",))],
    "named keys": [
        Record("When?", (Document("It lies.", None, "s"), Document("It falls in May.", None, "r")), ("May",))
    ],
    "named unanswerable": [Record("When?", (Document("It lies."),), (), answerable=False)],
    "canonical text": [Record("When?", (_MAY,), ("May",))],
    "canonical developer": [_talk(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))],
    "trl pair": [ROWS["trl pair"]],
    "trl chat pair": [ROWS["trl chat pair"]],
    "trl text": [ROWS["trl text"]],
    "trl tokens": [ROWS["trl tokens"]],
}


def format_of(sample: str) -> str:
    """The format's name of a sample's name."""
    return {"conversation": "canonical"}.get(sample, sample.split()[0])
