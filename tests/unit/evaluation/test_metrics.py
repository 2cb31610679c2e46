"""Do the scores of single answers agree with hand-made verdicts and an independent oracle?"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError
from selfaug.data.forms import read_forms
from selfaug.data.metrics import (
    POINTS,
    abstains,
    answer_f1,
    answer_match,
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
    assert abstains("En osaa sanoa.", "En osaa sanoa")
    assert not abstains("En osaa sanoa.")
    assert not abstains("Unknown Pleasures", "Unknown")  # one word only as a whole clause
    assert abstains("Unknown, sorry", "Unknown")
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


RIGHT, MISSING, WRONG = "right", "missing", "wrong"
LANGUAGES = [
    # response, accepted, match, F1, verdict: worked out by hand
    ("“Paris”", "Paris", 1, 1, RIGHT),
    ("the Beatles", "Beatles", 1, 1, RIGHT),
    ("'The Pink Triangle'", "Pink Triangle", 1, 1, RIGHT),
    ("Il l'a dit", "Il l'a dit", 1, 1, RIGHT),
    ("Il l'a dit", "Il l'dit", 0, 6 / 7, WRONG),
    ("vitamin C", "Vitamin A", 0, 1 / 2, WRONG),
    ("vitamin", "Vitamin A", 0, 2 / 3, WRONG),
    ("C++", "C#", 0, 0, WRONG),
    ("−5", "-5", 1, 1, RIGHT),
    ("5", "-5", 0, 0, WRONG),
    ("5 €", "€5", 1, 1, RIGHT),
    ("$5", "€5", 0, 1 / 2, WRONG),
    ("Die Hauptstadt ist «Köln».", "Köln", 0, 2 / 5, RIGHT),
    ("KO\u0308LN", "Köln", 1, 1, RIGHT),  # decomposed
    ("à Paris", "Paris", 0, 2 / 3, RIGHT),
    ("l’Italie", "l'Italie", 1, 1, RIGHT),
    ("¿Córdoba?", "Córdoba", 1, 1, RIGHT),
    ("10 000 zł", "10000 zł", 1, 1, RIGHT),
    ("МОСКВА", "Москва", 1, 1, RIGHT),
    ("İstanbul'da", "İstanbul", 0, 2 / 3, RIGHT),
    ("Việt Nam", "Viet Nam", 0, 1 / 2, WRONG),
    ("北京。", "北京", 1, 1, RIGHT),
    ("中国的首都是北京。", "北京", 0, 2 * 2 / 10, RIGHT),
    ("南京", "北京", 0, 1 / 2, WRONG),
    ("２０１０年", "2010年", 1, 1, RIGHT),
    ("答えは京都です", "京都", 0, 2 * 2 / 9, RIGHT),
    ("서울입니다.", "서울", 0, 2 * 2 / 7, RIGHT),
    ("กรุงเทพ", "กรุงเทพ ", 1, 1, RIGHT),
    ("ອາຫານ", "ອາຫານ。", 1, 1, RIGHT),
    ("ភ្នំពេញ។", "ភ្នំពេញ", 1, 1, RIGHT),
    ("ရန်ကုန်။", "ရန်ကုန်", 1, 1, RIGHT),
    ("राम", "रोम", 0, 0, WRONG),
    ("यह रोम है।", "रोम", 0, 1 / 2, RIGHT),
    ("२०१०", "2010", 1, 1, RIGHT),
    ("কলকাতা।", "কলকাতা", 1, 1, RIGHT),
    ("சென்னை", "சென்னி", 0, 0, WRONG),
    ("القَاهِرَةُ", "القاهرة", 1, 1, RIGHT),
    ("تهران؟", "تهران", 1, 1, RIGHT),
    ("יְרוּשָׁלַיִם", "ירושלים", 1, 1, RIGHT),
    ("+", "-", 0, 0, WRONG),
    ("👍", "👎", 0, 0, WRONG),
    ("#", "#", 1, 1, RIGHT),
]


@pytest.mark.parametrize(("response", "accepted", "match", "f1", "verdict"), LANGUAGES)
def test_scores_in_many_languages(response: str, accepted: str, match: float, f1: float, verdict: str) -> None:
    assert answer_match(response, [accepted]) == answer_match(accepted, [response]) == match
    assert answer_f1(response, [accepted]) == pytest.approx(f1)
    assert answer_f1(accepted, [response]) == pytest.approx(f1)
    assert crag_verdict(response, [accepted]) == verdict


def test_groundedness_in_other_scripts() -> None:
    assert grounded_tokens("राम", ["रोम"]) == (0, 1)
    assert grounded_tokens("２０１０年", ["建于2010年。"]) == (2, 2)
    assert grounded_tokens("北京。", ["东京"]) == (1, 2)
    assert grounded_tokens("-5", ["5"]) == (0, 1)


ABSTAINS = """
Not found in the context | There's no mention of it | There’s no mention of it. | unanswerable
It isn't mentioned. | based on the given documents, it is not possible to determine | The documents do not say.
N/A | We don't know. | I cannot answer that from the provided text
The exact date is not specified in the text. | "I don't know" | Unknown.
The provided passage does not contain the answer to this question. | Cannot be determined from the context.
The answer cannot be found in the documents provided.
I do not have enough information to answer this question.
I'm sorry, but I couldn't find any information about that. | The text gives no information about it
“Paris” is not mentioned in the documents. | The question cannot be answered. | Insufficient information
Das weiß ich nicht. | Die Dokumente enthalten keine Informationen dazu.
In den Dokumenten wird das nicht erwähnt. | Je ne sais pas. | Je ne sais pas, désolé
Le texte ne mentionne pas cette information. | Ce n’est pas mentionné dans le texte | No lo sé.
El documento no dice quién. | No se menciona en el texto. | Non lo so. | Il testo non lo specifica. | Não sei.
O texto não menciona isso. | Ik weet het niet. | De tekst vermeldt dit niet. | Nie wiem.
Brak informacji w tekście. | Я не знаю. | В тексте не указано. | Bilmiyorum.
Bu bilgi verilen belgelerde bulunmamaktadır. | Saya tidak tahu. | Dokumen tidak menyebutkan hal itu.
Tôi không biết. | Không có thông tin trong tài liệu. | 我不知道。 | 文档中没有提到。
根据提供的信息，无法确定。 | わかりません。 | モナコの首都は文書に記載されていません。 | 모르겠습니다.
알 수 없습니다 | 문서에 언급되어 있지 않습니다. | मुझे नहीं पता। | दस्तावेज़ में इसका उल्लेख नहीं है | لا أعرف.
لا أَعرِف | النص لا يذكر ذلك | אני לא יודע | אין מידע במסמך | ไม่ทราบครับ | ไม่มีข้อมูลในเอกสาร
"""
ANSWERS = """
He said: I don't know who you are | The band is called Unknown | It is not Paris | the novel 'No Answer'
Unknown Pleasures | "I Don't Know" is a song by Ozzy | None of the seven dwarfs | No | I cannot tell a lie
It is not known as Paris | Not found in Europe | There is no evidence of life on Mars | The Unknown Soldier
It is unknown territory | Not until 1990 | No Country for Old Men | The documents were burned
From the documents: Paris | Can't Find My Way Home | He does not know | There is no place like home
北京不是上海 | 知道 | 无锡 | なし崩し | パリではありません | 파리가 아닙니다 | Es ist nicht Paris | Nein
Ce n'est pas Paris | Non | No es París | Nada | Не Париж | Bu Paris değil | ไม่ใช่ปารีส | لا | ليست باريس | Nie
Niemand
"""


@pytest.mark.parametrize("response", [one.strip() for line in ABSTAINS.strip().splitlines() for one in line.split("|")])
def test_forms_of_abstention(response: str) -> None:
    assert abstains(response)
    assert crag_verdict(response, ["Paris"]) == MISSING


@pytest.mark.parametrize("response", [one.strip() for line in ANSWERS.strip().splitlines() for one in line.split("|")])
def test_answers_that_hold_such_words_are_answers(response: str) -> None:
    assert not abstains(response)


DENIED = [
    # response, accepted, verdict
    ("It was not Paris but London", "Paris", WRONG),
    ("It was not Paris but London", "London", RIGHT),
    ("It isn’t Paris.", "Paris", WRONG),
    ("Paris is incorrect", "Paris", WRONG),
    ("London rather than Paris", "Paris", WRONG),
    ("Paris rather than London", "Paris", RIGHT),
    ("Some say Paris, but it is not Paris", "Paris", WRONG),
    ("I don't think it's Paris", "Paris", WRONG),
    ("neither Paris nor London", "London", WRONG),
    ("anywhere but Paris", "Paris", WRONG),
    ("Not only Paris but also London", "Paris", RIGHT),
    ("Paris, not London", "Paris", RIGHT),
    ("No, Paris", "Paris", RIGHT),
    ("not until 1990", "1990", RIGHT),
    ("not guilty", "guilty", WRONG),
    ("not guilty", "not guilty", RIGHT),
    ("Switzerland is not in the EU", "Switzerland", RIGHT),
    ("Paris or London", "Paris", WRONG),
    ("London or Paris", "Paris", WRONG),
    ("Paris, London, or Rome", "Paris", WRONG),
    ("5 or more", "5", RIGHT),
    ("Paris, London, Berlin, Rome", "Paris", WRONG),
    ("Paris, London, Berlin and Rome", "Paris", WRONG),
    ("1. Paris\n2. London\n3. Berlin\n4. Rome", "Paris", WRONG),
    ("A) Paris B) London C) Rome D) Bonn", "Paris", WRONG),
    ("Monday, 5 May 2010, Paris, France", "Paris", RIGHT),
    ("Springfield, Illinois, USA", "Springfield", RIGHT),
    ("I Don't Know How to Love Him by Elliman", "I Don't Know How to Love Him", RIGHT),
    ("The answer is none", "none", RIGHT),
    ("None of the documents say", "none", MISSING),
    ("Es ist nicht Paris", "Paris", WRONG),
    ("Paris oder London", "Paris", WRONG),
    ("Ce n’est pas Paris", "Paris", WRONG),
    ("No es París", "París", WRONG),
    ("Non è Roma", "Roma", WRONG),
    ("É o Rio", "Rio", RIGHT),
    ("Não é Lisboa", "Lisboa", WRONG),
    ("Не Париж, а Лондон", "Париж", WRONG),
    ("Не Париж, а Лондон", "Лондон", RIGHT),
    ("Bu Paris değil", "Paris", WRONG),
    ("Londra yerine Paris", "Paris", RIGHT),
    ("不是北京", "北京", WRONG),
    ("不是上海，是北京", "北京", RIGHT),
    ("不仅是北京", "北京", RIGHT),
    ("北京或上海", "北京", WRONG),
    ("不是", "是", WRONG),
    ("パリではなくロンドン", "パリ", WRONG),
    ("パリではなくロンドン", "ロンドン", RIGHT),
    ("베이징이 아닙니다", "베이징", WRONG),
    ("यह दिल्ली नहीं है", "दिल्ली", WRONG),
    ("ليست باريس", "باريس", WRONG),
    ("ไม่ใช่ปารีส", "ปารีส", WRONG),
    ("sadece Paris değil", "Paris", RIGHT),
    ("none other than Paris", "Paris", RIGHT),
    ("Paris/London", "Paris", WRONG),
    ("100 km/h", "100 km/h", RIGHT),
    ("bukan Paris", "Paris", WRONG),
    ("không phải là Paris", "Paris", WRONG),
    ("to nie Paryż", "Paryż", WRONG),
    ("niet Parijs", "Parijs", WRONG),
    ("לא פריז", "פריז", WRONG),
]


@pytest.mark.parametrize(("response", "accepted", "verdict"), DENIED)
def test_a_denied_or_doubtful_answer_is_not_right(response: str, accepted: str, verdict: str) -> None:
    assert crag_verdict(response, [accepted]) == verdict


def test_guesses_that_are_all_accepted_are_right() -> None:
    assert crag_verdict("Paris or the City of Light", ["Paris"]) == WRONG
    assert crag_verdict("Paris or the City of Light", ["Paris", "City of Light"]) == RIGHT
    assert crag_verdict("red, white, blue, green", ["red"]) == WRONG
    assert crag_verdict("red, white, blue, green", ["red", "white", "blue"]) == RIGHT


TEXTS = st.text(alphabet="ab éñ राम শা שָׁ مُح กิข 北京は가 5-", max_size=12)
AROUND = st.sampled_from([("“", "”"), ("「", "」"), ("(", ")"), ("", "。"), ("", "."), ("¿", "?"), ("«", "»"),
                          ("**", "**"), ("", "!"), ("", "।"), ("", "؟"), (" ", "\n"), ("‘", "’"), ("【", "】"),
                          ('"', '"')])  # fmt: skip


@given(TEXTS, TEXTS, AROUND, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_form_and_punctuation_around_do_not_matter(
    one: str, other: str, around: tuple[str, str], form: unicodedata._NormalizationForm
) -> None:
    dressed = around[0] + unicodedata.normalize(form, one) + around[1]
    if any(character.isalnum() for character in one):
        assert answer_match(dressed, [one]) == 1
    for score in (answer_match, answer_f1):
        assert score(one, [other]) == score(other, [one])
        if any(character.isalnum() for character in one):
            assert score(dressed, [other]) == score(one, [other])


def test_a_users_file_adds_forms(tmp_path: Path) -> None:
    path = tmp_path / "forms.yaml"
    path.write_text("en:\n  begins: ['{topic} is beyond me']\n  whole: [pass]\nfi: [en tiedä]\n", encoding="utf-8")
    forms = read_forms(str(path))
    for response in ("The answer is beyond me!", "Sorry, pass.", "En tiedä sitä", "I don't know"):
        assert abstains(response, "", forms)
        assert abstains(response) is (response == "I don't know")
    assert not abstains("Pass the salt", "", forms)
    assert crag_verdict("En tiedä", ["Paris"], forms=forms) == MISSING


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("en: {hole: [x]}", "Did you mean 'whole'"),
        ("en: {whole: [no]}", "not a list of texts"),
        ("en: {whole: ['(x']}", "cannot be understood"),
        ("en: {whole: ['{nothing} x']}", "none of its language's parts"),
        ("en: {begins: ['[x]']}", "would match every response"),
        ("[x]", "no table of languages"),
        ("en: x", "neither a list of forms nor a table"),
        ("en: [", "cannot be read"),
    ],
)
def test_a_bad_file_of_forms_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "forms.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_forms(str(path))


def test_each_language_of_the_table_has_all_that_a_verdict_needs() -> None:
    from selfaug.data import forms

    table = yaml.safe_load(Path(forms.__file__).with_name("answer_forms.yaml").read_text(encoding="utf-8"))
    wanted = {
        "en", "de", "fr", "es", "it", "pt", "zh", "ja", "ko", "hi", "ar", "ru", "he", "th", "tr", "vi", "id", "pl",
        "nl",
    }  # fmt: skip
    assert wanted <= set(table)
    for language in sorted(wanted):
        assert table[language]["begins"], language
        assert table[language]["whole"], language
        assert table[language]["not_before"] or table[language]["not_after"], language
        assert table[language]["or"], language
        for pattern in (forms._no_answer(table[language]), forms.read_forms().not_after):
            assert pattern.match("") is None
