"""What memory does a long prompt leave behind? Computed from the model's shape, and measured on a 2-layer model.

Each part in a fresh process: the reference pass at once and in slices, the objective, and a whole optimiser step with
and without alignment. A figure is the operating system's peak of resident memory above the model and its inputs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import measure
import step_model
import torch

SHAPE = step_model.SHAPES["0.5B"]
LAYERS = 2
RESPONSE = 64
BYTES = 4  # float32
OBJECTIVE = 160 * 2**20
PARTS = ("whole pass", "pass in slices", "objective", "step without alignment", "step")


def computed(tokens: int, size: int, fraction: float) -> dict[str, float]:
    """Bytes that remain of one prompt, and that exist for one slice, or one whole pass, at a time.

    Args:
        tokens: T, of the prompt.
        size: S, of a slice.
        fraction: Share of the tokens drawn.
    """
    hidden, inner = SHAPE.hidden, SHAPE.inner
    narrow = hidden // SHAPE.heads * SHAPE.key_value_heads
    # Of the largest moment of a layer: gate, up and their product, beside the residual stream, its norm and the sum.
    activations = (3 * inner + 3 * hidden) * BYTES
    return {
        "keys and values": LAYERS * 2 * narrow * tokens * BYTES,
        "hidden states kept": fraction * tokens * hidden * BYTES,
        "activations of a slice": size * activations,
        # Bool, as transformers makes it, and once more in the model's dtype where a kernel asks for that.
        "mask of a slice": size * tokens * (1 + BYTES),
        "activations at once": tokens * activations,
        "objective": OBJECTIVE,
    }


def _peak_of(part: str, tokens: int, size: int, fraction: float, threads: int, connection: Any) -> None:
    torch.set_num_threads(threads)
    measure.quiet()
    run = _prepared(part, tokens, size, fraction)
    before = measure.peak_bytes()
    start = time.perf_counter()
    run()
    connection.send((measure.peak_bytes() - before, time.perf_counter() - start))


def _prepared(part: str, tokens: int, size: int, fraction: float) -> Any:
    from peft import LoraConfig, get_peft_model

    from selfaug.objective import BaseToTuned, LMHead, Rows, WeightedTerm, sweep
    from selfaug.planning.plan import plan_step
    from selfaug.planning.reference_batch import ReferenceLayout
    from selfaug.reference.adapter import BaseReference
    from selfaug.reference.passes import batch_hidden, sliced_hidden
    from selfaug.step.forward import StepObjective, install
    from selfaug.step.micro_batch import micro_batch
    from selfaug.training.config import SelfAugConfig

    generator = torch.Generator().manual_seed(1)
    model = step_model.base_model(SHAPE, LAYERS, torch.float32, "cpu")
    ids_T = torch.randint(0, SHAPE.vocabulary, (tokens,), generator=generator)
    index_N = torch.arange(0, tokens, round(1 / fraction))
    if part in ("whole pass", "pass in slices"):

        def reference_pass() -> None:
            with BaseReference().serving(model) as base:
                if part == "whole pass":
                    batch_hidden(base, {"input_ids": ids_T[None]})[index_N]
                else:
                    sliced_hidden(base, ids_T, index_N, size)

        return reference_pass
    if part == "objective":
        head = LMHead(model.lm_head.weight.detach())
        hidden_NH = torch.randn(len(index_N), SHAPE.hidden, generator=generator).requires_grad_()
        reference_NH = torch.randn(hidden_NH.shape, generator=generator)
        rows = Rows(torch.arange(len(index_N)), (WeightedTerm(BaseToTuned(), 1.0),), reference_NH=reference_NH)
        return lambda: sweep(hidden_NH, head, [rows], None, block_bytes=OBJECTIVE).loss.backward()
    alpha = 0.0 if part == "step without alignment" else 2.0
    args = SelfAugConfig("unused", alpha=alpha, bf16=False, report_to="none")
    adapted = get_peft_model(model, LoraConfig(r=step_model.RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.train()
    base = adapted.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    reference = BaseReference() if alpha else None
    install(base, StepObjective(args.changes.terms, reference, block_bytes=OBJECTIVE, slice_tokens=size))
    labels_T = torch.cat([torch.full((tokens - RESPONSE,), -100), ids_T[tokens - RESPONSE :]])
    batch = {
        "input_ids": ids_T[None],
        "labels": labels_T[None],
        "attention_mask": torch.ones(1, tokens, dtype=torch.int64),
    }
    layout = ReferenceLayout(slice=size)
    options = {"seed": 0, "step": 0, "align_token_fraction": fraction, "reference_layout": layout}
    plan = plan_step([batch], **options, align=reference is not None)  # type: ignore[arg-type]
    micro = micro_batch(plan.micro[0]).divided(n_response=plan.n_response, drawn_divisor=fraction * plan.n_aligned)
    return lambda: adapted(**batch, selfaug=micro)["loss"].backward()


def measured(part: str, tokens: int, size: int, fraction: float, threads: int) -> tuple[int, float]:
    """Peak bytes above the model, and seconds, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_peak_of, args=(part, tokens, size, fraction, threads, there))
    process.start()
    there.close()
    try:
        peak, seconds = here.recv()
    except EOFError:
        raise SystemExit(f"{part} at {tokens} tokens ended without a figure: it failed, or memory ran out") from None
    process.join()
    return int(peak), float(seconds)


def main() -> None:
    """Print the computed table, then the measured one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768], help="lengths to measure")
    parser.add_argument("--computed", type=int, nargs="+", default=[8192, 32768, 131072], help="lengths to compute")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--slice", type=int, default=4096)
    parser.add_argument("--fraction", type=float, default=0.125, help="align_token_fraction")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    measure.quiet()
    from selfaug.planning.reference_batch import slice_size

    kinds = {
        tokens: computed(tokens, slice_size(tokens, options.slice), options.fraction) for tokens in options.computed
    }
    most = f"slices up to {options.slice}, {options.fraction:g} of the tokens"
    print(f"computed, MiB: {LAYERS} layers, float32, {most}\n")
    print("| tokens | " + " | ".join(next(iter(kinds.values()))) + " |")
    print("|---|" + "---|" * len(next(iter(kinds.values()))))
    for tokens, parts in kinds.items():
        print(f"| {tokens:,} | " + " | ".join(f"{value / 2**20:,.0f}" for value in parts.values()) + " |")
    print("\nmeasured, MiB of peak memory above the model (seconds)\n")
    print("| tokens | " + " | ".join(options.parts) + " |")
    print("|---|" + "---|" * len(options.parts))
    found: dict[str, Any] = {}
    for tokens in options.tokens:
        row = []
        for part in options.parts:
            peak, seconds = measured(part, tokens, options.slice, options.fraction, options.threads)
            found[f"{part}, {tokens}"] = {"bytes": peak, "seconds": seconds}
            row.append(f"{peak / 2**20:,.0f} ({seconds:.0f} s)")
        print(f"| {tokens:,} | " + " | ".join(row) + " |", flush=True)
    if options.json:
        with Path(options.json).open("w", encoding="utf-8") as file:
            json.dump({"computed": kinds, "measured": found, "environment": measure.environment()}, file, indent=1)


if __name__ == "__main__":
    main()
