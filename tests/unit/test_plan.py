"""Does the plan of a step draw, count and cut the same whatever way the sequences reach it?

The expectation of positions is `tests/oracles/step.py::positions`, one loop over the labels of one sequence.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.common.errors import ConfigError
from selfaug.planning.plan import MicroPlan, StepPlan, draw, draw_tokens, plan_step
from selfaug.planning.reference_batch import ReferenceLayout
from tests.oracles.step import positions
from tests.unit.plan_cases import LAYOUTS, Laid, placed, plan_of, prefixes, steps


@settings(max_examples=80, deadline=None)
@given(steps(), st.booleans(), st.sampled_from([1.0, 0.5, 0.125]), st.sampled_from([1.0, 0.5, 0.125]))
def test_positions_and_divisors(made: tuple[Any, ...], boundary: bool, fraction: float, of_tokens: float) -> None:
    """Drawn positions are the oracle's, no other; the divisors count all sequences and tokens, drawn or not."""
    sequences, split, layout = made
    fractions = {"align_fraction": fraction, "align_token_fraction": of_tokens}
    plan, laid = plan_of(sequences, split, layout, align_boundary=boundary, **fractions)
    expected = [positions(labels, boundary) for _, labels in sequences]
    assert plan.n_response == sum(len(each.targets) for each in expected)
    assert plan.n_aligned == sum(len(each.aligned) for each in expected)
    for micro, each in zip(plan.micro, laid, strict=True):
        responses = placed(micro.response_N, each, sequences)
        assert responses == {i: expected[i].targets for i in each.at if expected[i].targets}
        flat_ids = each.batch["input_ids"].flatten()
        assert torch.equal(micro.label_N, flat_ids[micro.response_N + 1])
        drawn = {}
        for i in each.at:
            tokens = torch.tensor(sequences[i][0])
            chosen = [t for t in expected[i].aligned if draw_tokens(3, 5, tokens, of_tokens)[t]]
            if chosen and draw(3, 5, tokens, fraction):
                drawn[i] = chosen
        assert placed(micro.aligned_N, each, sequences) == drawn
        assert (micro.reference is None) == (not drawn)


@settings(max_examples=60, deadline=None)
@given(steps(), st.booleans(), st.sampled_from([1.0, 0.5]), st.sampled_from([1.0, 0.3]))
def test_held_responses_are_drawn_with_their_sequence_and_never_by_token(
    made: tuple[Any, ...], boundary: bool, fraction: float, of_tokens: float
) -> None:
    """Their divisor knows the share of sequences alone, so a draw by token would bias them."""
    sequences, split, layout = made
    fractions = {"align_fraction": fraction, "align_token_fraction": of_tokens}
    plan, laid = plan_of(sequences, split, layout, align_boundary=boundary, compare_response=True, **fractions)
    for micro, each in zip(plan.micro, laid, strict=True):
        assert micro.compared_N is not None
        expected, aligned = {}, {}
        for i in each.at:
            tokens, found = torch.tensor(sequences[i][0]), positions(sequences[i][1], boundary)
            if not draw(3, 5, tokens, fraction):
                continue
            expected |= {i: found.targets} if found.targets else {}
            chosen = [t for t in found.aligned if draw_tokens(3, 5, tokens, of_tokens)[t]]
            aligned |= {i: chosen} if chosen else {}
        assert placed(micro.compared_N, each, sequences) == expected
        assert placed(micro.aligned_N, each, sequences) == aligned
        compared = torch.cat([micro.compared_N, micro.aligned_N]).unique()
        assert (0 if micro.reference is None else len(micro.reference.index_N)) == len(compared)


@settings(max_examples=60, deadline=None)
@given(steps(), st.booleans(), st.sampled_from(["as it is laid", "whole", "concatenated"]), st.sampled_from([1.0, 0.3]))
def test_the_reference_sees_the_same_prefix(made: tuple[Any, ...], boundary: bool, how: str, of_tokens: float) -> None:
    """At each drawn position the reference has the tokens of its own document up to there, and nothing else before."""
    sequences, split, layout = made
    whole = how == "whole"
    taken = ReferenceLayout(whole=whole, concatenate=how == "concatenated")
    fractions = {"align_fraction": 0.5, "align_token_fraction": of_tokens}
    plan, laid = plan_of(sequences, split, layout, align_boundary=boundary, reference_layout=taken, **fractions)
    for micro, each in zip(plan.micro, laid, strict=True):
        if micro.reference is None:
            continue
        if whole:
            assert micro.reference.inputs is None
            assert torch.equal(micro.reference.index_N, micro.aligned_N)
            continue
        inputs = micro.reference.inputs
        assert inputs is not None
        assert ("attention_mask" in inputs) == ("attention_mask" in each.batch and how != "concatenated")
        if "attention_mask" in inputs:
            assert int(inputs["attention_mask"].sum()) == micro.reference.tokens
        real = prefixes(inputs)
        ours = {
            (n, tuple(sequences[i][0][: t + 1]))
            for n, (i, t) in enumerate((i, t) for i, ts in placed(micro.aligned_N, each, sequences).items() for t in ts)
        }
        theirs = {(n, real[at]) for n, at in enumerate(micro.reference.index_N.tolist())}
        assert theirs == ours
        longest = {}  # a prompt is cut at its last aligned position
        for at in micro.reference.index_N.tolist():
            longest[real[at][:1], at - len(real[at])] = len(real[at])
        assert micro.reference.tokens == sum(longest.values())


@settings(max_examples=60, deadline=None)
@given(steps(), st.permutations(LAYOUTS), st.integers(0, 2**31), st.integers(0, 10_000))
def test_the_draw_is_the_same_under_any_split(made: tuple[Any, ...], layouts: list[str], seed: int, step: int) -> None:
    """Micro-batches, ranks (a plan each), packing order and padding change nothing."""
    sequences, split, _ = made
    options = {"seed": seed, "step": step, "align_fraction": 0.5, "align_token_fraction": 0.5}

    def drawn(plan: StepPlan, laid: list[Laid]) -> set[tuple[int, int]]:
        found: set[tuple[int, int]] = set()
        for micro, each in zip(plan.micro, laid, strict=True):
            found |= {(i, t) for i, ts in placed(micro.aligned_N, each, sequences).items() for t in ts}
        return found

    whole = drawn(*plan_of(sequences, [list(range(len(sequences)))], layouts[0], **options))
    assert drawn(*plan_of(sequences, split, layouts[1], **options)) == whole
    by_rank: set[tuple[int, int]] = set()
    totals = []
    for which in split:
        plan, laid = plan_of(sequences, [which], layouts[2], **options)
        by_rank |= drawn(plan, laid)
        totals.append(plan.counts())
    assert by_rank == whole
    summed = plan.with_totals(torch.stack(totals).sum(dim=0))
    alone, _ = plan_of(sequences, [list(range(len(sequences)))], layouts[3], **options)
    assert (summed.n_response, summed.n_aligned) == (alone.n_response, alone.n_aligned)
    assert summed.anywhere == alone.anywhere


def test_the_draw_has_its_probability_and_is_independent() -> None:
    tokens = [torch.randint(0, 1000, (20,), generator=torch.Generator().manual_seed(i)) for i in range(40)]
    for fraction in (0.125, 0.5, 0.9):
        hits = torch.tensor([[draw(1, step, t, fraction) for step in range(100)] for t in tokens]).double()
        sigma = math.sqrt(fraction * (1 - fraction) / hits.numel())
        assert abs(hits.mean().item() - fraction) < 4 * sigma
        # Neither a sequence nor a step is lucky: the means over each scatter as independent draws do.
        for dim in (0, 1):
            expected = fraction * (1 - fraction) / hits.shape[dim]
            assert 0.5 < hits.mean(dim=dim).var().item() / expected < 1.7
    one = tokens[0]
    assert len({tuple(draw(seed, step, one, 0.5) for step in range(64)) for seed in range(20)}) == 20
    last = one.clone()
    last[-1] += 1
    assert [draw(1, s, one, 0.5) for s in range(64)] != [draw(1, s, last, 0.5) for s in range(64)]
    assert all(draw(1, step, one, 1.0) for step in range(64))


def test_the_draw_of_tokens_has_its_probability_and_is_independent() -> None:
    tokens = [torch.randint(0, 1000, (50,), generator=torch.Generator().manual_seed(i)) for i in range(40)]
    for fraction in (0.125, 0.5, 0.9):
        hits = torch.stack([torch.stack([draw_tokens(1, s, t, fraction) for s in range(40)]) for t in tokens]).double()
        assert abs(hits.mean().item() - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / hits.numel())
        # Neither a sequence, a step, nor a position is lucky.
        for dims in ((1, 2), (0, 2), (0, 1)):
            means = hits.mean(dim=dims)
            assert 0.4 < means.var().item() * hits.numel() / means.numel() / (fraction * (1 - fraction)) < 1.9
        # Whether a sequence is drawn says nothing about its tokens.
        lucky = torch.tensor([[draw(1, s, t, 0.5) for s in range(40)] for t in tokens])
        here = hits[lucky].mean().item()
        assert abs(here - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / (50 * int(lucky.sum())))
    assert draw_tokens(1, 0, tokens[0], 1.0).all()


def test_the_draw_of_a_token_is_of_its_place_in_the_document() -> None:
    """The same word at two places is drawn apart, and a document's draw does not know where in a row it lies."""
    same = torch.full((64,), 7)
    assert 10 < int(draw_tokens(0, 0, same, 0.5).sum()) < 54
    assert draw_tokens(0, 0, same, 0.5).tolist() == draw_tokens(0, 0, same.to(torch.int32), 0.5).tolist()
    smaller, larger = draw_tokens(0, 0, same, 0.25), draw_tokens(0, 0, same, 0.5)
    assert bool((larger | ~smaller).all())


def test_the_draw_reads_values_not_storage() -> None:
    """int32 or int64, contiguous or a column: the same tokens, the same draw."""
    tokens = torch.arange(12) % 5
    column = torch.stack([tokens, tokens + 1], dim=1)[:, 0]
    assert not column.is_contiguous()
    for step in range(32):
        expected = draw(0, step, tokens, 0.5)
        assert draw(0, step, tokens.to(torch.int32), 0.5) == expected
        assert draw(0, step, column, 0.5) == expected


def test_packed_neighbours_and_padding_by_hand() -> None:
    #        document 0            document 1      padding to 8
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 3, 0, 0]]),
        "labels": torch.tensor([[-100, -100, 7, -100, -100, -100, -100, -100]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 0, 0]]),
    }
    plan = plan_step([batch], seed=0, step=0)
    assert plan.micro[0].aligned_N.tolist() == [0, 4]  # not 3 → 4 (next document), nor 5, 6, 7 (end and padding)
    assert plan.micro[0].response_N.tolist() == [1]
    with_boundary = plan_step([batch], seed=0, step=0, align_boundary=True)
    assert with_boundary.micro[0].aligned_N.tolist() == [0, 1, 4]
    assert (plan.n_aligned, with_boundary.n_aligned) == (2, 3)
    without_documents = {name: value for name, value in batch.items() if name != "position_ids"}
    assert plan_step([without_documents], seed=0, step=0).micro[0].aligned_N.tolist() == [0, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ([[1, 0, 0], [1, 1, 0], [0, 1, 1]], "a window of two tokens"),
        ([[1, 1, 0], [1, 1, 0], [1, 1, 1]], "a prefix that sees itself whole"),
        ([[1, 0, 0], [1, 1, 0], [1, 0, 1]], "a gap"),
        ([[1, 0, 0], [1, 0, 0], [1, 1, 1]], "a token that does not see itself"),
    ],
)
def test_a_square_mask_of_anything_but_documents_is_refused(seen: list[list[int]], why: str) -> None:
    ids_BT = torch.tensor([[5, 6, 7]])
    batch = {"input_ids": ids_BT, "labels": ids_BT, "attention_mask": torch.tensor([[seen]]).bool()}
    with pytest.raises(ConfigError, match="something else than its own document"):
        plan_step([batch], seed=0, step=0)
    batch["attention_mask"] = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    assert plan_step([batch], seed=0, step=0).n_response == 2, why


@pytest.mark.parametrize(
    "labels", [[-100], [4], [4, 5], [-100, 5]], ids=["one token", "trained", "all trained", "no pair"]
)
def test_nothing_to_align(labels: list[int]) -> None:
    ids = torch.full((1, len(labels)), 7)
    batch = {"input_ids": ids, "labels": torch.tensor([labels]), "attention_mask": torch.ones_like(ids)}
    plan = plan_step([batch], seed=0, step=0)
    assert plan.n_aligned == 0
    assert plan.anywhere == (False,)
    check_empty(plan.micro[0])
    assert plan.micro[0].response_N.numel() == len(labels) - 1


@pytest.mark.parametrize("labels", [[5, -100, -100, 4], [5, 6, 7, 8]], ids=["then a prompt", "all trained"])
@pytest.mark.parametrize("boundary", [False, True])
def test_a_trained_first_token_counts_alike_in_every_layout(labels: list[int], boundary: bool) -> None:
    """Nothing predicts a document's first token, and TRL's padding-free collator drops its label: so must padding."""
    sequences = [([5, 6, 7, 8], labels), ([3, 4, 5, 6], [-100, -100, -100, 6])]
    counts = {
        layout: plan_of(sequences, [[0, 1]], layout, align_boundary=boundary)[0].counts().tolist() for layout in LAYOUTS
    }
    assert len({tuple(each) for each in counts.values()}) == 1, counts


def test_no_alignment_is_asked_for() -> None:
    ids = torch.arange(6)[None]
    batch = {"input_ids": ids, "labels": torch.tensor([[-100] * 4 + [4, 5]]), "attention_mask": torch.ones_like(ids)}
    assert plan_step([batch], seed=0, step=0).n_aligned == 3
    plan = plan_step([batch], seed=0, step=0, align=False)
    assert (plan.n_aligned, plan.n_response, plan.anywhere) == (0, 2, (False,))
    check_empty(plan.micro[0])


def test_no_micro_batches() -> None:
    plan = plan_step([], seed=0, step=0)
    assert plan.counts().tolist() == [0, 0]
    assert plan.with_totals(torch.tensor([7, 9])) == StepPlan((), 7, 9, ())


def test_totals_say_where_any_rank_has_a_reference_pass() -> None:
    ids = torch.arange(8)[None]
    prompt = {"input_ids": ids, "labels": torch.full((1, 8), -100), "attention_mask": torch.ones_like(ids)}
    answer = {**prompt, "labels": ids}
    here, there = plan_step([prompt, answer], seed=0, step=0), plan_step([answer, answer], seed=0, step=0)
    assert here.anywhere == (True, False)
    summed = there.with_totals(here.counts() + there.counts())
    assert summed.anywhere == (True, False)
    assert summed.n_aligned == 7
    assert summed.n_response == 3 * 7


def check_empty(micro: MicroPlan) -> None:
    assert micro.aligned_N.numel() == 0
    assert micro.aligned_N.dtype == torch.int64
    assert micro.reference is None
