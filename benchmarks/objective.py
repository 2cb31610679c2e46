"""What does the alignment objective cost, against dense logits, TRL's and Liger's kernels, and the bare products?

    python benchmarks/objective.py --rows 1024 --vocabulary 151936 --hidden 896 --dtype float32 bfloat16

Forward and backward of ``Σ KL(softmax(W reference_n) ‖ softmax(W hidden_n))`` with a frozen W, gradient to the hidden
states. Every variant's value and gradient is first held against the definition. Times are medians of interleaved
rounds in one process; memory is the peak above the inputs, each variant in a process of its own.

With a CUDA device it is measured there instead, in bfloat16 at N 8,192 and H 3,584 (`objective_gpu.py`), unless
`--device cpu` is given.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import objective_gpu
import torch
from measure import Demand, add_common_options, environment, interleaved, median_ratio, peak_bytes, report, table
from objective_variants import (
    BARE,
    GPU_VARIANTS,
    VARIANTS,
    Inputs,
    Sizes,
    bare_products,
    forward_backward,
    make_inputs,
)

from selfaug.objective import LMHead, plain
from selfaug.objective.blocks import default_block_bytes

# Least speed-up over dense logits and over TRL's kernel, least share of the bare products, by dtype.
DEMANDS = {"float32": (1.3, 2.5, 0.70), "bfloat16": (1.3, 5.0, 0.40)}
MEMORY_SHARE = 0.05
# Relative, of the value and of the gradient's norm. Logits of 10 kept in bfloat16 are off by 0.02, so a probability by
# 2 %, and the small difference of two by several times that; the right direction and divisor are still told apart.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}
CHECKED_ROWS = 48


def check(inputs: Inputs, dtype: str, names: list[str]) -> dict[str, tuple[float, float]]:
    """Each variant's relative error of value and gradient against the definition in float32, on a few rows.

    Raises:
        RuntimeError: If one is not the same function as the others: its time would mean nothing.
    """
    few = inputs.first(CHECKED_ROWS)
    hidden_NH = few.hidden_NH.detach().float().requires_grad_()
    wide = Inputs(hidden_NH, few.reference_NH.float(), few.weight_VH.float(), few.block_bytes)
    truth = forward_backward(lambda x: plain(x.hidden_NH, LMHead(x.weight_VH), [x.group]).loss, wide)
    truth_NH = wide.hidden_NH.grad
    assert truth_NH is not None
    assert truth > 0.01 * len(few.hidden_NH), "base and tuned do not differ, so agreement would show nothing"
    errors = {}
    for name in names:
        value = forward_backward(VARIANTS[name], few)
        assert few.hidden_NH.grad is not None
        gradient = float((few.hidden_NH.grad.float() - truth_NH).norm() / truth_NH.norm())
        errors[name] = (abs(value - truth) / truth, gradient)
        if max(errors[name]) > TOLERANCE[dtype]:
            raise RuntimeError(f"{name} in {dtype}: value and gradient are off by {errors[name]}, relative")
    return errors


def _memory_child(name: str, sizes: Sizes, dtype: str, send: Any) -> None:
    inputs = make_inputs(sizes, getattr(torch, dtype))
    # Code that is loaded on first use is no part of the variant's working memory.
    forward_backward(VARIANTS[name], make_inputs(Sizes(2, 64, 32, 2**20), getattr(torch, dtype)))
    before = peak_bytes()
    forward_backward(VARIANTS[name], inputs)
    send.send(peak_bytes() - before)


def extra_memory(name: str, sizes: Sizes, dtype: str) -> int:
    """Peak resident memory above the inputs, in bytes, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_memory_child, args=(name, sizes, dtype, send))
    child.start()
    send.close()
    try:
        return int(receive.recv())
    except EOFError:
        raise RuntimeError(f"{name} in {dtype} died while its memory was measured") from None
    finally:
        child.join()


def measure(sizes: Sizes, dtype: str, repeats: int, names: list[str], clock: str) -> dict[str, Any]:
    """Seconds of each round, errors and memory of every variant in one dtype."""
    inputs = make_inputs(sizes, getattr(torch, dtype))
    errors = check(inputs, dtype, names)
    runs: dict[str, Callable[[], object]] = {n: partial(forward_backward, VARIANTS[n], inputs) for n in names}
    seconds = interleaved({**runs, BARE: partial(bare_products, inputs)}, repeats, clock=clock)
    del inputs, runs
    memory = {name: extra_memory(name, sizes, dtype) for name in names}
    return {"dtype": dtype, "seconds": seconds, "errors": errors, "extra_bytes": memory}


def as_rows(measured: dict[str, Any]) -> list[list[str]]:
    """One line a variant: seconds, times ours, the bare products' share of it, memory, errors."""
    seconds, lines = measured["seconds"], []
    for name, taken in seconds.items():
        share = median_ratio(seconds[BARE], taken)
        line = [measured["dtype"], f"{statistics.median(taken):.3f}", f"{median_ratio(taken, seconds['ours']):.2f}"]
        line += ["" if name == BARE else f"{share:.0%}"]
        if name in measured["errors"]:
            line += [f"{measured['extra_bytes'][name] / 2**20:.0f}", *(f"{e:.0e}" for e in measured["errors"][name])]
        lines.append([name, *line, *[""] * (7 - len(line))])
    return lines


def demands_of(measured: dict[str, Any]) -> list[Demand]:
    """What issue 2 asks of this dtype."""
    seconds, memory, dtype = measured["seconds"], measured["extra_bytes"], measured["dtype"]
    over_dense, over_trl, share = DEMANDS[dtype]
    found = [Demand(f"{dtype} bare products' share of ours", median_ratio(seconds[BARE], seconds["ours"]), share, True)]
    if "dense float32" in seconds:
        ratio = median_ratio(seconds["dense float32"], seconds["ours"])
        found.append(Demand(f"{dtype} speed-up over dense float32", ratio, over_dense, True))
        part = memory["ours"] / memory["dense float32"]
        found.append(Demand(f"{dtype} extra memory over dense's", part, MEMORY_SHARE, False))
    if "trl" in seconds:
        found.append(
            Demand(f"{dtype} speed-up over trl", median_ratio(seconds["trl"], seconds["ours"]), over_trl, True)
        )
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, help="Default 1,024 on a CPU, 8,192 on a GPU.")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, help="Default 896 on a CPU, 3,584 on a GPU.")
    parser.add_argument("--dtype", nargs="+", choices=list(DEMANDS), default=list(DEMANDS), help="Of a CPU.")
    parser.add_argument("--block_mib", type=int, help="Memory of our row blocks; by default the package's own.")
    rivals = [name for name in GPU_VARIANTS if not name.startswith("ours")]
    parser.add_argument("--without", nargs="*", choices=rivals, default=[], help="liger: all of Liger's.")
    add_common_options(parser, repeats=5)
    args = parser.parse_args()
    names = [name for name in VARIANTS if name not in args.without]
    block_bytes = args.block_mib * 2**20 if args.block_mib else default_block_bytes(torch.device(args.device))
    rows, hidden = (8192, 3584) if args.device == "cuda" else (1024, 896)
    sizes = Sizes(args.rows or rows, args.vocabulary, args.hidden or hidden, block_bytes)
    if args.device == "cuda":
        return objective_gpu.run(sizes, args.repeats, args.without, args.json)
    about = environment()
    measured = [measure(sizes, dtype, args.repeats, names, args.clock) for dtype in args.dtype]
    head = ["variant", "dtype", "seconds", "times ours", "bare share", "extra MiB", "value error", "gradient error"]
    text = [
        f"N={sizes.rows} V={sizes.vocabulary} H={sizes.hidden}, blocks {block_bytes / 2**20:.0f} MiB, "
        f"{args.repeats} interleaved rounds, {args.clock} clock, "
        f"{about['threads']} threads, torch {about['torch']}, load {about['load_average'][0]} before",
        "",
        table(head, [line for m in measured for line in as_rows(m)]),
    ]
    figures = {
        "before": about,
        "sizes": asdict(sizes),
        "repeats": args.repeats,
        "clock": args.clock,
        "measured": measured,
    }
    return report(text, [d for m in measured for d in demands_of(m)], figures, args.json)


if __name__ == "__main__":
    sys.exit(main())
