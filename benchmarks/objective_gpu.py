"""What does the alignment objective cost on a GPU, against its rivals there and the card's own matrix products?

Called by `objective.py`. bfloat16; every variant's value and gradient is first held against the definition in float64
on a few rows. Times are medians of interleaved rounds, each ended by a synchronisation; memory is the allocator's peak
above the inputs.

Shapes: N rows, V vocabulary, H hidden.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from measure import Demand, environment, interleaved, median_ratio, report, table
from objective_variants import BARE, GPU_VARIANTS, Inputs, Sizes, bare_products, forward_backward, make_inputs

from selfaug.objective import LMHead, plain

__all__ = ["run"]

DTYPE = torch.bfloat16
OVER_TRL, OVER_LIGER, MEMORY_BYTES = 1.4, 1.2, 0.6e9
# Both round logits and gradient to 16 bits: which comes out ahead by a hundredth is chance.
ERROR_OVER_DENSE = 1.05
TOLERANCE = 0.15  # relative; as in objective.py
CHECKED_ROWS = 48
PEAK_SIDE = 8192
PEAK = "a plain product"


def run(sizes: Sizes, repeats: int, without: Sequence[str], file: Path | None) -> int:
    """Measure and print; the exit status is 1 where a demand is missed."""
    about = environment()
    inputs = make_inputs(sizes, DTYPE, device="cuda")
    errors, left_out = _errors(inputs, without)
    memory = {}
    for name in list(errors):
        try:
            memory[name] = _extra_bytes(name, inputs)
        except torch.OutOfMemoryError:
            if name.startswith("ours"):
                raise
            left_out[name] = "out of memory"
            del errors[name]
    runs: dict[str, Callable[[], object]] = {n: partial(_turn, GPU_VARIANTS[n], inputs) for n in errors}
    side = torch.randn(PEAK_SIDE, PEAK_SIDE, dtype=DTYPE, device="cuda")
    out = torch.empty_like(side)
    runs[BARE] = partial(_bare, inputs)
    runs[PEAK] = partial(_product, side, out)
    seconds = interleaved(runs, repeats, warm_up=2)
    products = 3 * 2 * sizes.rows * sizes.vocabulary * sizes.hidden
    peak = 2 * PEAK_SIDE**3 / statistics.median(seconds[PEAK])
    share = products / statistics.median(seconds["ours"]) / peak
    lines = []
    for name, taken in seconds.items():
        line = [name, f"{1e3 * statistics.median(taken):.2f}"]
        if name != PEAK:
            rate = products / statistics.median(taken)
            line += [f"{median_ratio(taken, seconds['ours']):.2f}", f"{rate / 1e12:.0f}", f"{rate / peak:.0%}"]
        if name in errors:
            line += [f"{memory[name] / 1e6:.0f}", *(f"{e:.1e}" for e in errors[name])]
        lines.append([*line, *[""] * (8 - len(line))])
    head = ["variant", "ms", "times ours", "TFLOP/s", "of peak", "extra MB", "value error", "gradient error"]
    text = [
        f"{torch.cuda.get_device_name()}: N={sizes.rows} V={sizes.vocabulary} H={sizes.hidden}, {DTYPE}, "
        f"blocks {sizes.block_bytes / 2**20:.0f} MiB, {repeats} interleaved rounds, torch {about['torch']}",
        f"peak {peak / 1e12:.0f} TFLOP/s, of a product of {PEAK_SIDE} × {PEAK_SIDE} × {PEAK_SIDE}; a variant's TFLOP/s "
        "count the three products that the objective needs; errors relative, against float64",
        "",
        table(head, lines),
        *(f"left out: {name}: {why}" for name, why in left_out.items()),
        f"ours: {share:.0%} of the peak",
    ]
    figures = {
        "before": about,
        "card": torch.cuda.get_device_name(),
        "seconds": seconds,
        "errors": errors,
        "extra_bytes": memory,
        "left_out": left_out,
        "peak_flops": peak,
    }
    return report(text, _demands(seconds, errors, memory), figures, file)


def _demands(
    seconds: dict[str, list[float]], errors: dict[str, tuple[float, float]], memory: dict[str, int]
) -> list[Demand]:
    found = [Demand("extra memory of ours, GB", memory["ours"] / 1e9, MEMORY_BYTES / 1e9, False)]
    if "trl" in seconds:
        found.append(Demand("speed-up over trl", median_ratio(seconds["trl"], seconds["ours"]), OVER_TRL, True))
    liger = [median_ratio(taken, seconds["ours"]) for name, taken in seconds.items() if name.startswith("liger")]
    if liger:
        found.append(Demand("speed-up over the best of liger's", min(liger), OVER_LIGER, True))
    if "dense float32" in errors:
        for i, what in enumerate(("value", "gradient")):
            ours, dense = errors["ours"][i], errors["dense float32"][i]
            found.append(Demand(f"{what} error over dense's", ours / dense, ERROR_OVER_DENSE, False))
    return found


def _errors(inputs: Inputs, without: Sequence[str]) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Relative errors of value and gradient by variant; which rivals are left out, and why.

    Raises:
        RuntimeError: If ours is not the function that is asked for.
    """
    few = inputs.first(CHECKED_ROWS)
    hidden_NH = few.hidden_NH.detach().double().requires_grad_()
    wide = Inputs(hidden_NH, few.reference_NH.double(), few.weight_VH.double(), few.block_bytes)
    truth = forward_backward(lambda x: plain(x.hidden_NH, LMHead(x.weight_VH), [x.group]).loss, wide)
    truth_NH = wide.hidden_NH.grad
    assert truth_NH is not None
    assert truth > 0.01 * len(hidden_NH), "base and tuned do not differ, so agreement would show nothing"
    errors: dict[str, tuple[float, float]] = {}
    left_out = dict.fromkeys(without, "by request")
    for name, variant in GPU_VARIANTS.items():
        if any(name.startswith(word) for word in without):
            continue
        try:
            value = forward_backward(variant, few)
        except Exception as error:  # a rival that is not installed, or refuses this card
            if name.startswith("ours"):
                raise
            left_out[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        assert few.hidden_NH.grad is not None
        gradient = float((few.hidden_NH.grad.double() - truth_NH).norm() / truth_NH.norm())
        found = (abs(value - truth) / truth, gradient)
        if max(found) <= TOLERANCE:
            errors[name] = found
        elif name.startswith("ours"):
            raise RuntimeError(f"{name}: value and gradient are off by {found}, relative")
        else:
            left_out[name] = f"another function: value and gradient off by {found}, relative"
    return errors, left_out


def _extra_bytes(name: str, inputs: Inputs) -> int:
    """The allocator's peak above what lies there anyway, in the second of two turns: compiling is no part of it."""
    for _ in range(2):
        inputs.hidden_NH.grad = None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _turn(GPU_VARIANTS[name], inputs)
    inputs.hidden_NH.grad = None
    return int(torch.cuda.max_memory_allocated() - before)


def _turn(variant: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> None:
    forward_backward(variant, inputs)
    torch.cuda.synchronize()


def _bare(inputs: Inputs) -> None:
    bare_products(inputs)
    torch.cuda.synchronize()


def _product(side: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(side, side, out=out)
    torch.cuda.synchronize()
