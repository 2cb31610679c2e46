"""Are the logged averages those over all tokens since the last log, on all ranks?"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from selfaug.step.meter import COUNTS, Meter

CPU = torch.device("cpu")


def alone(values: Tensor) -> Tensor:
    return values


def sums(nll: float, alignment: float | None = None, entropy: float = 0.0, correct: float = 0.0) -> dict[str, Tensor]:
    given = {"nll": nll, "entropy": entropy, "correct": correct}
    if alignment is not None:
        given["alignment"] = alignment
    return {name: torch.tensor(value, requires_grad=name == "nll") for name, value in given.items()}


def counts(
    response: int, aligned: int = 0, reference: int = 0, tokens: int = 1, auxiliary: int = 0, compared: int = 0
) -> dict[str, int]:
    return dict(zip(COUNTS, (response, aligned, reference, tokens, auxiliary, compared, 1), strict=True))


def test_averages_are_over_tokens_not_over_micro_batches() -> None:
    meter = Meter()
    meter.add(sums(nll=9.0, alignment=1.0, entropy=3.0, correct=1.0), counts(3, aligned=2, reference=5, tokens=10))
    meter.add(sums(nll=1.0, alignment=5.0, entropy=1.0, correct=1.0), counts(1, aligned=10, reference=20, tokens=30))
    got = meter.drain(CPU, alone)
    assert got.pop("tokens_per_second") > 0
    assert got == {
        "nll": 10 / 4,  # the mean of the two means would be 2.0
        "alignment": 6 / 12,
        "entropy": 1.0,
        "mean_token_accuracy": 0.5,
        "response_tokens": 4,
        "aligned_tokens": 12,
        "reference_tokens": 25,
        "tokens": 40,
    }
    assert {name for name, value in got.items() if isinstance(value, int)} == {name for name in got if "tokens" in name}


def test_a_drain_begins_anew() -> None:
    meter = Meter()
    meter.add(sums(nll=4.0), counts(2))
    assert meter.drain(CPU, alone)["nll"] == 2.0
    assert meter.drain(CPU, alone) == {}
    meter.add(sums(nll=3.0), counts(1))
    assert meter.drain(CPU, alone)["nll"] == 3.0


def test_what_was_not_measured_is_not_reported() -> None:
    meter = Meter()
    meter.add(sums(nll=0.0), counts(response=0, tokens=7))
    got = meter.drain(CPU, alone)
    assert got["tokens"] == 7
    assert not {"nll", "entropy", "mean_token_accuracy", "alignment", "aux_loss"} & got.keys()


def test_the_auxiliary_loss_is_a_mean_over_passes() -> None:
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add({**sums(nll=1.0), "auxiliary": torch.tensor(value)}, counts(1, auxiliary=1))
    assert meter.drain(CPU, alone)["aux_loss"] == 3.0


def test_a_sum_of_another_method_does_not_shift_the_others() -> None:
    meter = Meter()
    meter.add({**sums(nll=2.0, alignment=4.0), "another": torch.tensor(99.0)}, counts(1, aligned=2, tokens=3))
    got = meter.drain(CPU, alone)
    assert (got["nll"], got["alignment"], got["aligned_tokens"], got["tokens"]) == (2.0, 2.0, 2, 3)


def test_ranks_are_added_up_once_and_in_one_call() -> None:
    ranks = [Meter(), Meter()]
    ranks[0].add(sums(nll=6.0, alignment=1.0), counts(2, aligned=1, tokens=4))
    ranks[1].add(sums(nll=2.0), counts(6, tokens=8))  # nothing aligned here: the tensors must line up all the same
    sent: list[Tensor] = []
    for meter in ranks:
        meter.drain(CPU, lambda values: sent.append(values) or values)  # type: ignore[func-returns-value]
    assert len(sent) == 2
    assert sent[0].shape == sent[1].shape
    again = Meter()
    again.add(sums(nll=6.0, alignment=1.0), counts(2, aligned=1, tokens=4))
    got = again.drain(CPU, lambda _: sent[0] + sent[1])
    assert (got["nll"], got["alignment"], got["tokens"]) == (1.0, 1.0, 12)


def test_sums_are_kept_in_double_precision_and_without_a_graph() -> None:
    meter = Meter()
    value = torch.tensor(1.0, requires_grad=True)
    meter.add({"nll": value * 1e8}, counts(1))
    meter.add({"nll": value}, counts(1))
    assert not any(total.requires_grad for total in meter._sums.values())
    assert meter.drain(CPU, alone)["nll"] == (1e8 + 1) / 2, "float32 would lose the second micro-batch"
    # bfloat16 sums are added up in double precision as well
    meter.add({"nll": torch.tensor(256.0, dtype=torch.bfloat16)}, counts(1))
    meter.add({"nll": torch.tensor(1.0, dtype=torch.bfloat16)}, counts(1))
    assert meter.drain(CPU, alone)["nll"] == 257 / 2


@given(st.lists(st.tuples(st.floats(0, 100, width=32), st.integers(0, 50)), min_size=1, max_size=20))
def test_any_split_into_micro_batches_gives_the_same_mean(parts: list[tuple[float, int]]) -> None:
    one, many = Meter(), Meter()
    total, tokens = math.fsum(value for value, _ in parts), sum(n for _, n in parts)
    for value, n in parts:
        many.add({"nll": torch.tensor(value, dtype=torch.float64)}, counts(n))
    one.add({"nll": torch.tensor(total, dtype=torch.float64)}, counts(tokens))
    got, expected = many.drain(CPU, alone), one.drain(CPU, alone)
    assert got.keys() == expected.keys()
    if tokens:
        assert got["nll"] == pytest.approx(total / tokens, rel=1e-12)


def test_a_methods_own_sums_are_divided_by_their_own_count() -> None:
    meter = Meter({"dft": "response_tokens", "kl_response": "compared_tokens"})
    meter.add({"dft": torch.tensor(6.0), "kl_response": torch.tensor(5.0)}, counts(3, compared=2))
    meter.add({"dft": torch.tensor(2.0)}, counts(1))
    found = meter.drain(CPU, alone)
    assert (found["dft"], found["kl_response"]) == (2.0, 2.5)
    meter.add({"dft": torch.tensor(2.0)}, counts(1))
    assert "kl_response" not in meter.drain(CPU, alone)
