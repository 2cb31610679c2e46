"""Words of every script: what belongs to one, and what makes two texts the same."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfaug.data.corpus import Corpus
from selfaug.data.record import Document
from selfaug.data.words import contains, marked_words, normalise, terms, words

SAME = [
    ("２０１０年", "2010年"),
    ("北京。", "北京"),
    ("「北京」", "北京"),
    ("ﾗｰﾒﾝ", "ラーメン"),
    ("“Paris”", "Paris"),
    ("« Paris »", "Paris"),
    ("Ｃ＃", "C#"),
    ("don’t", "don't"),
    ("Hawaiʻi", "Hawai'i"),
    ("−5", "-5"),
    ("–5", "-5"),
    ("(-5)", "-5"),
    ("**-5**", "-5"),
    ("1990–2000", "1990-2000"),
    ("1,000", "1000"),
    ("1,00,000", "100000"),
    ("1\u00a0000", "1000"),
    ("1\u202f000\u202f000", "1000000"),
    ("1 000", "1000"),
    ("1’000", "1000"),
    (".5", "0.5"),
    ("-.5", "-0.5"),
    ("٢٠١٠", "2010"),
    ("२०१०", "2010"),
    ("٣٫١٤", "3.14"),
    ("50 %", "50%"),
    ("$5", "5 $"),
    ("-$5", "$-5"),
    ("€3.50", "3.50 €"),
    ("U.S.", "US"),
    ("U. S.", "US"),
    ("J. K. Rowling", "J.K. Rowling"),
    ("مُحَمَّدٌ", "محمد"),
    ("القـــاهرة", "القاهرة"),
    ("שָׁלוֹם", "שלום"),
    ("می\u200cخواهم", "میخواهم"),
    ("soft\u00adhyphen", "softhyphen"),
    ("İstanbul", "istanbul"),
    ("ΟΔΟΣ", "οδος"),
    ("STRASSE", "straße"),
    ("ﬁn", "fin"),
    ("सेब।", "सेब"),
    ("5km", "5 km"),
    ("C#语言", "C# 语言"),
]
DIFFERENT = [
    ("राम", "रोम"),
    ("কলা", "কলি"),
    ("கல்", "கலை"),
    ("má", "ma"),
    ("é", "e"),
    ("ปา", "ปู"),
    ("が", "か"),
    ("-5", "5"),
    ("-5", "−50"),
    ("气温-5度", "气温5度"),
    ("C#", "C++"),
    ("C#", "C"),
    ("C++", "C"),
    ("A+", "A-"),
    ("A-", "A"),
    ("O-", "O+"),
    (".NET", "NET"),
    ("3.14", "314"),
    ("3.14", "3"),
    ("0,125", "125"),
    ("10²", "102"),
    ("3½", "31/2"),
    ("50%", "50"),
    ("$5", "€5"),
    ("$5", "5"),
    ("<5", ">5"),
    ("18+", "18"),
    ("أب", "اب"),
    ("ısı", "isi"),
    ("1990年-2000年", "1990年2001年"),
    ("北京", "京北"),
    ("Node.js", "Nodejs"),
    ("+", "-"),
    ("?", "!"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_words(one: str, other: str) -> None:
    assert one != other
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_words(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_words_by_hand() -> None:
    assert words("The year 1990-2000, F-16 and COVID-19.") == [
        "the", "year", "1990", "2000", "f", "16", "and", "covid", "19",
    ]  # fmt: skip
    assert words("1990年-2000年") == ["1990", "年", "2000", "年"]
    assert words("The end.The start ... .net") == ["the", "end", "the", "start", ".net"]
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words("สวัสดี") == ["ส", "วั", "ส", "ดี"]
    assert words("ភាសា") == ["ភា", "សា"]
    assert words("မြန်မာ") == ["မြ", "န်", "မာ"]
    assert words("ພາສາ") == ["ພ", "າ", "ສ", "າ"]
    assert words("서울은") == ["서", "울", "은"]
    assert terms("東京都 a b") == ["東", "京", "東京", "都", "京都", "a", "b"]
    assert marked_words("Sorry, no. The U.S. (5.5): node.js。是") == [
        "sorry", ",", "no", ".", "the", "us", ".", "5.5", ",", "node", "js", ".", "是",
    ]  # fmt: skip


SCRIPTS = st.text(alphabet="ab éÅñ राम हिंदी কি தமி שלוםָ مُحَ สวัด 北京は가한 ラｶﾞ 0５٣ ệ", max_size=25)


@given(SCRIPTS)
def test_composed_decomposed_and_compatible_forms_are_the_same(text: str) -> None:
    expected = words(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert words(unicodedata.normalize(form, text)) == expected
    assert words(text.upper()) == words(text.lower()) == expected


WIDE = {i: i + 0xFEE0 for i in range(0x21, 0x7F)}


@given(st.text(alphabet="abC5-+#.,% $()'\"", max_size=20))
def test_width_does_not_matter(text: str) -> None:
    # Quotes and brackets that NFKC leaves alone must not differ in what they allow before a sign.
    assert words(text.translate(WIDE)) == words(text)


@given(st.text(max_size=40))
def test_any_text_has_words_that_are_found_in_it(text: str) -> None:
    assert all(word and not word.isspace() for word in words(text))
    assert contains(text, text)
    assert [word for word in marked_words(text) if word not in (".", ",")] == words(text)


@given(
    st.text(alphabet="北京東都はกาข가나한", min_size=1, max_size=6), st.text(alphabet="北京東都はกาข가나한", max_size=6)
)
def test_added_characters_make_another_word(text: str, added: str) -> None:
    assert (normalise(text + added) == normalise(text)) is (added == "")


@pytest.mark.parametrize(
    ("right", "wrong", "question"),
    [
        ("राम अयोध्या के राजा थे।", "रोम इटली की राजधानी है।", "राम कौन थे?"),
        ("रोम इटली की राजधानी है।", "राम अयोध्या के राजा थे।", "रोम कहाँ है?"),
        ("كَتَبَ نَجِيبُ مَحْفُوظ الثُّلاثِيَّة", "القاهرة عاصمة مصر", "من هو نجيب محفوظ؟"),
        ("กรุงเทพเป็นเมืองหลวงของไทย", "มะม่วงเป็นผลไม้", "เมืองหลวงของไทยคืออะไร"),
        ("京都有很多寺庙。", "都城在东京。东京很大。", "京都有什么？"),
        ("京都には寺が多い。", "東京の都庁は新宿にある。", "京都の寺"),
        ("서울은 대한민국의 수도이다.", "부산은 항구 도시이다.", "대한민국 수도는?"),
        ("ירושלים היא בירת ישראל", "חיפה היא עיר נמל", "מהי בִּירַת ישראל?"),
        ("C# was made by Microsoft.", "C++ was made by Stroustrup.", "Who made C#?"),
        ("In ２０１０ the bridge was built.", "In 2011 the bridge fell.", "What was built in 2010?"),
    ],
)
def test_the_right_passage_is_found(right: str, wrong: str, question: str) -> None:
    for passages in ((right, wrong), (wrong, right)):
        found = Corpus(tuple(Document(text) for text in passages)).search(question, 1)
        assert [document.text for document in found] == [right]
