"""Do the scores of single answers agree with hand-made verdicts and an independent oracle?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfaug.evaluation.metrics import (
    POINTS,
    abstains,
    crag_verdict,
    exact_match,
    grounded_tokens,
    squad_normalise,
    token_f1,
)
from tests.oracles import squad

words = st.text(alphabet="aAtThHeEnN .,'-0é", max_size=30)


@given(words, st.lists(words, min_size=1, max_size=4))
def test_exact_match_and_f1_agree_with_the_oracle(response: str, accepted: list[str]) -> None:
    assert exact_match(response, accepted) == squad.em(response, accepted)
    assert token_f1(response, accepted) == pytest.approx(squad.f1(response, accepted), abs=1e-15)


@pytest.mark.parametrize(
    ("response", "accepted", "em", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("in Paris, France", ["Paris"], 0, 0.5),  # precision 1/3, recall 1
        ("Paris Paris", ["Paris"], 0, 2 / 3),  # the second one is not in the answer
        ("Rome", ["Paris", "Roma", "Rome."], 1, 1),
        ("", ["Paris"], 0, 0),
        ("the", ["a"], 1, 1),  # SQuAD: nothing is left of either
        ("theatre", ["atre"], 0, 0),  # articles are words, not beginnings
    ],
)
def test_scores_by_hand(response: str, accepted: list[str], em: float, f1: float) -> None:
    assert exact_match(response, accepted) == em
    assert token_f1(response, accepted) == pytest.approx(f1)
    assert squad_normalise("A  The-an b") == "thean b"


LONG_LIST = " ".join(f"maybe{chr(97 + i % 26)}" for i in range(49))
CRAG = [
    # accepted answers, response, verdict
    (["Paris"], "Paris", "right"),
    (["Paris"], "The capital of France is Paris.", "right"),
    (["Paris", "City of Light"], "It is the city of light", "right"),
    (["Paris"], "London", "wrong"),
    (["Paris"], "Parisian", "wrong"),
    (["Paris"], "", "missing"),
    (["Paris"], "  \n\t", "missing"),
    (["Paris"], "...", "missing"),
    (["Paris"], "I don't know", "missing"),
    (["Paris"], "i dont know.", "missing"),
    (["Paris"], "I don’t know!", "missing"),
    (["Paris"], "I do not know the answer to that.", "missing"),
    (["Paris"], "I'm sorry, but I don't know.", "missing"),
    (["Paris"], "Sorry, I cannot find it in the documents.", "missing"),
    (["Paris"], "Unfortunately, the provided documents do not contain this information.", "missing"),
    (["Paris"], "Based on the given context, it cannot be determined.", "missing"),
    (["Paris"], "There is not enough information to answer.", "missing"),
    (["Paris"], "None of the documents mentions it.", "missing"),
    (["Paris"], "The answer is not in the text", "missing"),
    (["Paris"], "I'm not sure.", "missing"),
    (["Paris"], "N/A", "missing"),
    (["Paris"], "I don't know, but perhaps Paris", "missing"),
    (["I Don't Know How to Love Him"], "I Don't Know How to Love Him", "right"),
    (["Paris"], "He sang I don't know in Rome", "wrong"),
    (["none"], "None", "right"),
    (["5"], "5.5", "wrong"),
    (["5.5"], "about 5.5 million", "right"),
    (["1200"], "1,200 people", "right"),
    (["1,200"], "1200", "right"),
    (["55"], "5.5", "wrong"),
    (["no"], "There is no such place", "wrong"),
    (["no"], "No, it closed in 1999.", "right"),
    (["yes"], "Yes", "right"),
    (["Paris"], LONG_LIST + " Paris", "right"),
    (["Paris"], LONG_LIST + " one more Paris", "wrong"),
    (["Paris"], "Paris " + LONG_LIST * 40, "right"),
    ([], "Paris", "wrong"),
    ([], "I don't know", "missing"),
    ([""], "...", "missing"),
]


@pytest.mark.parametrize(("accepted", "response", "verdict"), CRAG)
def test_crag_verdicts_by_hand(accepted: list[str], response: str, verdict: str) -> None:
    assert crag_verdict(response, accepted) == verdict


def test_crag_score_is_the_published_formula() -> None:
    verdicts = [crag_verdict(response, accepted) for accepted, response, _ in CRAG]
    right, missing, n = verdicts.count("right"), verdicts.count("missing"), len(verdicts)
    assert min(right, missing, n - right - missing) > 5
    assert sum(POINTS[v] for v in verdicts) / n == pytest.approx((2 * right + missing) / n - 1)


def test_the_trained_abstention_counts_in_any_language() -> None:
    assert abstains("Das weiß ich nicht.", "Das weiß ich nicht")
    assert not abstains("Das weiß ich nicht.")
    assert not abstains("Knowledge", "Know")  # whole words
    assert not abstains("None of the seven dwarfs had a beard, but Dopey")
    assert not abstains("No")


@given(st.text(max_size=60), st.text(min_size=1, max_size=20))
def test_any_text_gets_a_verdict(response: str, answer: str) -> None:
    assert crag_verdict(response, [answer]) in POINTS
    assert crag_verdict(answer, [answer]) in ("right", "missing")


def test_groundedness_counts_words_of_the_documents() -> None:
    assert grounded_tokens("The red fox, twice!", ["A fox.", "Red: 2"]) == (2, 3)
    assert grounded_tokens("", ["x"]) == (0, 0)
