"""The table and the picture of the study on a real instruct model, from what stands in its results.

A method's setting is chosen on validation rows; what is shown is measured on test rows. Intervals of 95 % draw items,
the same for both sides of a difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import table
from real_model_plan import Setting

from selfaug.common.statistics import Items, difference, value

__all__ = ["chosen", "draw", "tables"]

Done = Mapping[Setting, Mapping[str, Any]]
QUESTIONS = ("science", "maths")
HEAD = (
    "run", "rate", "epochs", "seeds", "EM", "F1", "answer NLL", "refused", "KL, instructions", "KL, questions",
    "NLL of its answers", "NLL, WikiText", "KL, prompts",
)  # fmt: skip


def items(body: Mapping[str, Any], part: str, name: str, *groups: str) -> Items:
    """A column of a part: of the task one value a record, else sums over tokens of the items of these groups."""
    values = body["parts"][part]
    if part != "kept" and name != "nll":
        return Items.of(values[name])
    counts = values.get("groups", {})
    group_of = list(itertools.chain.from_iterable([group] * count for group, count in counts.items()))
    places = [n for n, group in enumerate(group_of) if group in groups] if groups else range(len(values["tokens"]))
    return Items.of([(values[name][n], values["tokens"][n]) for n in places])


def without_answer(body: Mapping[str, Any], part: str) -> Items:
    """Whether each question without an answer was refused; others do not count."""
    values = body["parts"][part]
    pairs = zip(values["exact_match"], values["answerable"], strict=True)
    return Items.of([None if answerable else refused for refused, answerable in pairs])


def tables(done: Done) -> str:
    """One table a number of documents, and a sentence for LoRA and SelfAug each."""
    found = []
    for documents in sorted({setting.documents for setting in done}):
        own = {setting: body for setting, body in done.items() if setting.documents == documents}
        base = next((body for setting, body in own.items() if setting.method == "base"), None)
        if base is None:
            continue
        rows = [_row(["base", "", "", ""], [base], base)]
        rows += [_row(_names(group), [own[each] for each in group], base) for group in _groups(own)]
        found += [f"{documents} document{'s' * (documents > 1)}\n", table(list(HEAD), rows), *_sentences(own, base)]
    return "\n\n".join(found) or "Nothing is done yet."


def _groups(own: Done) -> list[list[Setting]]:
    """Runs that differ by their seed alone."""
    trained = sorted(
        (setting for setting in own if setting.method != "base"),
        key=lambda s: (s.method, s.options, -s.scale, s.epochs, s.rate, s.seed),
    )
    return [list(group) for _, group in itertools.groupby(trained, key=lambda s: (s.label, s.rate, s.epochs))]


def _names(group: Sequence[Setting]) -> list[str]:
    first = group[0]
    return [first.label, f"{first.rate:g}", str(first.epochs), str(len(group))]


def _row(names: list[str], bodies: Sequence[Mapping[str, Any]], base: Mapping[str, Any]) -> list[str]:
    row = list(names)
    for name, digits in (("exact_match", 2), ("f1", 2), ("nll", 3)):
        row.append(f"{_mean([items(body, 'test', name) for body in bodies]):.{digits}f}")
    row.append(f"{_mean([without_answer(body, 'test') for body in bodies]):.2f}")
    if bodies[0] is base:
        answers, text = (
            value(items(base, "kept", "nll", *groups)) for groups in (("ifeval", *QUESTIONS), ("wikitext",))
        )
        return [*row, "0", "0", f"{answers:.3f}", f"{text:.3f}", "0"]
    row += [_above(bodies, None, "kl", groups) for groups in (("ifeval",), QUESTIONS)]
    row += [_above(bodies, base, "nll", groups) for groups in (("ifeval", *QUESTIONS), ("wikitext",))]
    return [*row, _above(bodies, None, "kl", ("prompt",))]


def _mean(each: Sequence[Items]) -> float:
    return sum(value(one) or 0.0 for one in each) / len(each)


def _above(
    bodies: Sequence[Mapping[str, Any]], base: Mapping[str, Any] | None, name: str, groups: Sequence[str]
) -> str:
    """Nats a token above the base's (``None``: above nothing), with its interval."""
    tuned = [items(body, "kept", name, *groups) for body in bodies]
    before = [
        Items(0 * one.numerator_n, one.denominator_n) if base is None else items(base, "kept", name, *groups)
        for one in tuned
    ]
    return _told(list(zip(before, tuned, strict=True)), 3)


def _told(pairs: Sequence[tuple[Items, Items]], digits: int) -> str:
    found = difference(pairs, resamples=2000, shared_items=True)
    assert found is not None
    low, high = found.interval or (float("nan"), float("nan"))
    return f"{found.value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def chosen(own: Done, method: str) -> Setting | None:
    """A method's run of seed 0 with the best F1 on validation rows; of equal ones that with the lower answer NLL."""
    runs = [each for each in own if each.method == method and each.seed == 0 and each.scale == 1]
    if not runs:
        return None

    def rank(each: Setting) -> tuple[float, float]:
        return value(items(own[each], "validation", "f1")) or 0.0, -(
            value(items(own[each], "validation", "nll")) or 0.0
        )

    return max(runs, key=rank)


def _sentences(own: Done, base: Mapping[str, Any]) -> list[str]:
    found = []
    best = {name: chosen(own, name) for name in ("sft", "selfaug")}
    for name, setting in best.items():
        if setting is not None:
            runs = sum(each.method == name and each.seed == 0 and each.scale == 1 for each in own)
            kl = _above([own[setting]], None, "kl", ("ifeval", *QUESTIONS))
            f1 = _told([(items(base, "test", "f1"), items(own[setting], "test", "f1"))], 2)
            found.append(
                f"Chosen on validation rows among {runs}: {setting.name}. On test rows: F1 above the base's {f1}, KL "
                f"on the base's answers {kl} nats a token."
            )
    if all(best.values()):
        one, other = (setting for setting in best.values() if setting is not None)
        found.append(f"SelfAug's minus LoRA's: {_apart(own[one], own[other])}.")
    found += [
        f"At equal settings, {other.name} minus {one.name}: {_apart(own[one], own[other])}."
        for one, other in _twins(own)
    ]
    return found


def _twins(own: Done) -> list[tuple[Setting, Setting]]:
    """Each run of plain LoRA with each of SelfAug that shares its rate, epochs and seed."""

    def shared(setting: Setting) -> tuple[float, int, int]:
        return setting.rate, setting.epochs, setting.seed

    plain = {shared(each): each for each in own if each.method == "sft" and each.scale == 1}
    return [(plain[shared(each)], each) for each in own if each.method == "selfaug" and shared(each) in plain]


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Differences of two runs on the same items."""
    f1 = _told([(items(one, "test", "f1"), items(other, "test", "f1"))], 2)
    kl = _told([(items(one, "kept", "kl", "ifeval", *QUESTIONS), items(other, "kept", "kl", "ifeval", *QUESTIONS))], 3)
    return f"F1 {f1}, KL {kl}"


def draw(done: Done, path: Path, documents: int = 1) -> None:
    """F1 on test rows against KL on the base's answers, a curve over learning rates for each method and epoch count."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    own = {setting: body for setting, body in done.items() if setting.documents == documents}
    curves: dict[tuple[str, int], list[list[Setting]]] = {}
    for group in _groups(own):
        curves.setdefault((group[0].label, group[0].epochs), []).append(group)
    with mpl.rc_context({"svg.hashsalt": "selfaug", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        looks = itertools.cycle(
            zip(("#555555", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00"), "os^DvP", strict=True)
        )
        for (label, epochs), groups in curves.items():
            colour, marker = next(looks)
            bodies = [[own[each] for each in group] for group in groups]
            across = [_mean([items(b, "kept", "kl", "ifeval", *QUESTIONS) for b in each]) for each in bodies]
            up = [_mean([items(b, "test", "f1") for b in each]) for each in bodies]
            name = f"{label}, {epochs} epoch{'s' * (epochs > 1)}"
            axes.plot(across, up, color=colour, marker=marker, markersize=5, linewidth=1.2, label=name)
            for group, point in zip(groups, zip(across, up, strict=True), strict=True):
                axes.annotate(
                    f"{group[0].rate:g}", point, textcoords="offset points", xytext=(5, -8), fontsize=7, color=colour
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("KL(base ‖ tuned) on the base's own answers, nats a token")
        axes.set_ylabel("F1 on test questions")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, fontsize=8, loc="best")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})
