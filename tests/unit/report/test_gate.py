"""Does the gate decide on the interval, and does a looser limit never make it stricter?"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError
from selfaug.report.gate import Check, Verdict, check, decide, overall, parse_rule
from tests.made_runs import part, results, usual_parts

ORDER: dict[Verdict, int] = {"fail": 0, "undecided": 1, "pass": 2}
NUMBERS = st.floats(-1, 1, allow_nan=False)


def of(**parts: Any) -> dict[str, Any]:
    return results({name: body for name, (body, _) in (parts or usual_parts()).items()})


def exact(low: float, high: float, *, unit: str = "fraction", higher: bool = True, base: float = 0.5) -> dict[str, Any]:
    """Results with one metric and this interval of tuned minus base; so many items that it is not widened."""
    body, _ = part("task", "task", {"f1": (unit, higher, [0.0, 1.0], [0.0, 1.0])})
    value = (low + high) / 2
    body["metrics"]["f1"] |= {
        "base": {"value": base, "stderr": 0.0, "n": 10**9},
        "tuned": {"value": base + value, "stderr": 0.0, "n": 10**9},
    }
    body["metrics"]["f1"]["difference"] |= {
        "value": value, "interval": [low, high], "stderr": 0.0, "n": 10**9,
    }  # fmt: skip
    return results({"task": body})


def verdict(text: str, found: dict[str, Any], kind: Any = "max-drop") -> Verdict:
    checks, _ = check(parse_rule(kind, text), found)
    assert len(checks) == 1
    return checks[0].verdict


@settings(deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS)
def test_the_decision_is_that_of_the_definition(a: float, b: float, floor: float) -> None:
    low, high = sorted((a, b))
    found = decide(low, high, floor)
    assert (found == "pass") == all(gain >= floor for gain in (low, high))
    assert (found == "fail") == all(gain < floor for gain in (low, high))


@settings(deadline=None)
@given(st.integers(-60, 20), st.integers(0, 30), st.integers(-40, 40), st.integers(0, 20))
def test_a_looser_limit_is_never_stricter(low: int, width: int, limit: int, looser: int) -> None:
    found = exact(low / 100, (low + width) / 100)
    for kind, sign in (("max-drop", 1), ("min-gain", -1)):
        tight = verdict(f"task={limit}pt", found, kind)
        loose = verdict(f"task={limit + sign * looser}pt", found, kind)
        assert ORDER[loose] >= ORDER[tight]


@settings(deadline=None)
@given(st.integers(-60, 20), st.integers(0, 30), st.integers(-40, 40))
def test_an_allowed_drop_is_a_negative_gain(low: int, width: int, limit: int) -> None:
    found = exact(low / 100, (low + width) / 100)
    assert verdict(f"task={limit}pt", found) == verdict(f"task={-limit}pt", found, "min-gain")


# With 10^9 items the bounds are widened by 4e-9 and no more.
EDGES = [
    ((-0.0199999, 0.01), "2pt", "pass"),
    ((-0.0200001, 0.01), "2pt", "undecided"),
    ((-0.05, -0.0200001), "2pt", "fail"),
    ((-0.05, -0.0199999), "2pt", "undecided"),
    ((0.0000001, 0.2), "0", "pass"),
    ((-0.1, 0.1), "0", "undecided"),
    ((-0.0099999, 0.01), "2%", "pass"),
    ((-0.0100001, 0.01), "2%", "undecided"),
    ((-0.0199999, 0.01), "0.02", "pass"),
    ((-0.0199999, 0.01), "2e-2", "pass"),
    ((-0.0229999, 0.01), "2.3 pt", "pass"),
    ((-0.3, 0.01), ".31", "pass"),
    ((0.011, 0.2), "-1pt", "pass"),
]


@pytest.mark.parametrize(("interval", "limit", "wanted"), EDGES)
def test_the_edges_of_a_limit(interval: tuple[float, float], limit: str, wanted: Verdict) -> None:
    assert verdict(f"task={limit}", exact(*interval)) == wanted


def test_where_lower_is_better_a_rise_is_a_drop() -> None:
    worse = exact(0.04, 0.06, unit="nats/token", higher=False, base=2.0)
    assert verdict("task=0.01", worse) == "fail"
    assert verdict("task=0.07", worse) == "pass"
    assert verdict("task=4%", worse) == "pass"
    assert verdict("task=1%", worse) == "fail"
    better = exact(-0.06, -0.04, unit="nats/token", higher=False, base=2.0)
    assert verdict("task=0.03", better, "min-gain") == "pass"


def test_few_items_decide_nothing_however_alike_their_answers() -> None:
    same = [0.0, 1.0] * 10
    small = of(task=part("task", "task", {"f1": ("fraction", True, same, same)}))
    assert verdict("task=2pt", small) == "undecided"
    assert verdict("task:f1=2pt", small) == "undecided"
    large = of(task=part("task", "task", {"f1": ("fraction", True, same * 50, same * 50)}))
    assert verdict("task=2pt", large) == "pass"


def test_an_undecided_check_says_how_many_items_would_decide() -> None:
    wide = exact(-0.05, 0.03)  # gain -0.01, reach 0.04, 0.01 away from the limit: (0.04 / 0.01)² = 16
    found, _ = check(parse_rule("max-drop", "task=2pt"), wide)
    assert found[0].verdict == "undecided"
    assert "about 16 times as many items" in found[0].reason
    # The claim itself: an interval narrower by the root of that (and a little) decides.
    assert verdict("task=2pt", exact(-0.01 - 0.04 / 4.01, -0.01 + 0.04 / 4.01)) == "pass"


def test_a_group_is_the_mean_of_its_primary_metrics_of_one_unit() -> None:
    found = of()
    checks, notes = check(parse_rule("max-drop", "general=2pt"), found)
    assert len(checks) == 1
    assert checks[0].subject == "mean of 2: general:arc:acc, general:ifeval:strict"
    parts = found["parts"]
    gains = [parts[name]["metrics"][label]["difference"]["value"]
             for name, label in (("general:arc", "acc"), ("general:ifeval", "strict"))]  # fmt: skip
    assert checks[0].gain.value == pytest.approx(sum(gains) / 2)
    assert notes == [
        "text:news:nll is not measured in points, and is left out of --max-drop general=2pt: name it itself."
    ]
    # Nothing is nothing in every unit.
    checks, notes = check(parse_rule("min-gain", "general=0"), found)
    assert [one.gain.unit for one in checks] == ["fraction", "nats/token"]
    assert notes == []
    with pytest.raises(ConfigError, match=r"0\.02 of what\?.*fraction and in nats/token"):
        check(parse_rule("max-drop", "general=0.02"), found)


def subjects(name: str) -> list[str]:
    checks, _ = check(parse_rule("max-drop", f"{name}=90%"), of())
    return [one.subject for one in checks]


def test_a_glob_matches_piece_by_piece() -> None:
    # Texts are parts of the group as well.
    assert subjects("general:*") == ["general:arc:acc", "general:ifeval:strict", "text:news:nll"]
    assert subjects("general:news") == ["text:news:nll"]
    assert subjects("arc") == ["general:arc:acc"]
    assert subjects("general:arc") == ["general:arc:acc"]
    assert subjects("text:*") == ["text:news:nll"]
    assert subjects("text:news:*") == ["text:news:nll"]
    assert subjects("general:?rc:a*") == ["general:arc:acc"]
    # A metric that does not stand for its part is named with one piece more.
    two = of()
    two["parts"]["general:arc"]["metrics"]["acc_norm"] = {
        **two["parts"]["general:arc"]["metrics"]["acc"],
        "primary": False,
    }
    for name, wanted in (
        ("general:*", ["acc", "strict", "nll"]),
        ("general:*:*", ["acc", "acc_norm", "strict", "nll"]),
    ):
        checks, _ = check(parse_rule("max-drop", f"{name}=90%"), two)
        assert [one.subject.rpartition(":")[2] for one in checks] == wanted


@pytest.mark.parametrize(
    ("rule", "decided", "aside"),
    [
        ("task:*=2pt", ["f1"], "answer_nll is not measured in points"),
        ("task:*=5%", ["answer_nll"], "a percentage of that says nothing"),
        ("general:*=2pt", ["acc", "strict"], "text:news:nll is not measured in points"),
        ("*:*=2pt", ["f1", "acc", "strict"], "not measured in points"),
    ],
)
def test_a_pattern_leaves_aside_what_its_limit_does_not_suit_and_says_so(
    rule: str, decided: list[str], aside: str
) -> None:
    checks, notes = check(parse_rule("max-drop", rule), of())
    assert [one.subject.rpartition(":")[2] for one in checks] == decided
    assert any(aside in note and "left out of" in note for note in notes)


def test_a_pattern_whose_limit_suits_nothing_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="text:news:nll is not measured in points"):
        check(parse_rule("max-drop", "text:*=2pt"), of())


MISTAKES = [
    ("generl=2pt", r"nothing is called 'generl'\. Did you mean 'general'\?"),
    ("general:arcc=2pt", r"Did you mean 'general:arc'\?"),
    ("f1=2pt", r"'f1' is a metric"),
    ("2pt", "does not say what may change"),
    ("=2pt", "does not say what may change"),
    ("task=", "'' is no limit"),
    ("task=two", "'two' is no limit"),
    ("task=2px", "'2px' is no limit"),
    ("task=nan", "'nan' is no limit"),
    ("task=1e999", "'1e999' is no limit"),
    ("text:news=2pt", "text:news:nll is not measured in points"),
    ("task=5%", "a percentage of that says nothing"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_mistakes_are_said_with_the_near_name(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(parse_rule("max-drop", text), of())


def test_a_group_that_was_not_evaluated_is_a_mistake() -> None:
    only = of(task=usual_parts()["task"])
    with pytest.raises(ConfigError, match="no results of the group 'general'") as error:
        check(parse_rule("max-drop", "general=2pt"), only)
    assert "--general" in error.value.hint


def test_a_metric_without_an_interval_is_not_decided() -> None:
    found = of()
    apart = found["parts"]["general:arc"]["metrics"]["acc"]["difference"]
    apart |= {"interval": None, "no_interval_because": "the metric is no ratio of sums over items"}
    checks, _ = check(parse_rule("max-drop", "arc=90pt"), found)
    assert (checks[0].verdict, checks[0].reason) == (
        "undecided", "there is no interval: the metric is no ratio of sums over items",
    )  # fmt: skip
    apart_of_other = found["parts"]["general:ifeval"]["metrics"]["strict"]
    apart_of_other["difference"] = None
    with pytest.raises(ConfigError, match="nothing to decide"):
        check(parse_rule("max-drop", "ifeval=90pt"), found)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["pass", "fail", "undecided"]), min_size=1))
def test_one_failure_fails_and_one_doubt_leaves_doubt(verdicts: list[Verdict]) -> None:
    rule = parse_rule("max-drop", "task=1pt")
    checks = [Check(rule, "", None, 0.0, one, "") for one in verdicts]  # type: ignore[arg-type]
    worst = min(verdicts, key=lambda one: ["fail", "undecided", "pass"].index(one))
    assert overall(checks) == worst


def test_a_rule_reads_back_as_it_was_written() -> None:
    rule = parse_rule("min-gain", " general:a=b = 2.50 pt")
    assert (rule.name, rule.limit, rule.scale) == ("general:a=b", Decimal("2.50"), "pt")
    assert str(rule) == "--min-gain general:a=b=2.50pt"
