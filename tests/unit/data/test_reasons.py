from __future__ import annotations

from selfaug.data.lengths import LeftOut, LengthReport
from selfaug.data.reasons import by_reason, reason_lines


def test_rows_are_counted_by_reason_before_any_is_listed():
    reasons = [f"needs {500 + n} tokens, 150 are allowed, and it has no documents" for n in range(1, 14)]
    reasons += ["the template refuses it: 'roles must alternate'", "the template refuses it: 'no'"]
    lines = reason_lines([(reason, f"row {n}: {reason}") for n, reason in enumerate(reasons, start=1)], 20)
    assert lines[0] == "15 rows left out, of 20 (75 %), by reason:"
    assert lines[1].split() == ["rows", "share", "reason"]
    assert lines[2].split(maxsplit=3) == [
        "13", "65", "%", "needs … tokens, 150 are allowed, and it has no documents",
    ]  # fmt: skip
    assert [line.strip() for line in lines[3:7]] == [
        *(f"row {n}: needs {500 + n} tokens, 150 are allowed, and it has no documents" for n in (1, 2, 3)),
        "and 10 more",
    ]
    assert lines[7].split(maxsplit=3) == ["2", "10", "%", "the template refuses it: …"]
    assert len(lines) == 10
    assert reason_lines([], 20) == []


def test_places_and_received_values_make_no_new_reason():
    rows = [
        (f"field documents[{n}].text: expected non-empty text, received {n}.5", f"a.jsonl, line {n}") for n in range(9)
    ]
    (reason,) = by_reason(rows)
    assert (reason.text, reason.count) == ("field … expected non-empty text", 9)
    (alone,) = by_reason(rows[:1])
    assert alone.text == "field documents[0].text: expected non-empty text"


def test_a_thousand_reasons_are_a_short_table():
    words = [f"{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(600)]
    lines = reason_lines([(f"{word} is wrong", word) for word in words], 600)
    assert len(lines) < 40
    assert lines[-1].split(maxsplit=3) == ["588", "98", "%", "588 further reasons"]


def test_one_row_left_of_twenty_is_a_warning_with_a_way_out():
    report = LengthReport(150, rows=20, kept=1)
    report.left_out = [LeftOut(f"row {n}", f"needs {n} tokens", "raise --max_length.") for n in range(200, 219)]
    ((message, hint),) = report.warnings()
    assert message == "only 1 of 20 rows are left: 19 (95 %) are left out, 19 of them because: needs … tokens"
    assert hint == "raise --max_length."
    row = report.as_dict()
    assert row["left_out_by_reason"] == {"needs … tokens": 19}
    assert row["warnings"] == [message]
    assert row["left_out"][0] == {"row": "row 200", "reason": "needs 200 tokens"}
    few = LengthReport(150, rows=20, kept=19, left_out=[LeftOut("row 1", "needs 200 tokens")])
    assert few.warnings() == []
