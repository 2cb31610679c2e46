"""What does alignment add to an optimiser step, against the least arithmetic that it needs?

    python benchmarks/step.py --dtype float32 bfloat16 --checkpointing off on
    python benchmarks/step.py --shape 7B --tokens 2048 --depths 2 8  # on a GPU

A random model of Qwen2.5-0.5B's or 7B's shape with LoRA r 16 on all linear layers, at two depths; seconds and memory
are extrapolated linearly to all layers. Steps are the trainer's own: plan, both passes or a cached reference,
objective, backward, optimiser. Settings and depths take turns in one process; on a GPU each turn ends with a
synchronisation, and memory is the allocator's peak. For the share 1/8, 8 sequences of one length make a step, and its
number is chosen among those in which the draw takes exactly one of them.

The floor (`step_model.floor`) is the ratio of the products' FLOPs that the two steps cannot do without; what the steps
really multiply is counted beside it with torch's FLOP counter.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Demand, add_common_options, environment, interleaved, quiet, report, table
from step_model import (
    ATTENTION_FLOPS,
    RANK,
    SEQUENCES,
    SHAPES,
    Sizes,
    base_model,
    cut_to,
    floor,
    rows_of,
    step_with_draws,
    tokenizer,
)
from torch.utils.flop_counter import FlopCounterMode

from selfaug import SelfAugConfig, SelfAugTrainer

ALPHA_0 = "α = 0"
EIGHTH = "α = 2, 1/8"


@dataclass(frozen=True)
class Setting:
    """α, the share of the sequences that is aligned, and whether the reference comes from a cache."""

    alpha: float
    fraction: float = 1.0
    cached: bool = False


SETTINGS = {
    ALPHA_0: Setting(0.0),
    "α = 2": Setting(2.0),
    EIGHTH: Setting(2.0, 0.125),
    "α = 2, cached": Setting(2.0, cached=True),
}
# Ratio over floor: what the step costs at most, and what is aimed at.
WITHIN = (1.15, 1.08)
EIGHTH_OF_7B = 1.16
MEMORY_OVER_ALPHA_0 = 1.05
# The counter counts what the first layer is spared.
COUNT_TOLERANCE = 0.05
# Weights in bfloat16 under autocast is what TRL trains with on a GPU; the others: weights and arithmetic alike, and
# float32 weights under autocast.
DTYPES = ("float32", "bfloat16", "autocast", "bfloat16+autocast")


class Step:
    """A trainer on its own copy of the adapter; calling it does one optimiser step, to its end on the device."""

    def __init__(self, model: Any, sizes: Sizes, setting: str, dtype: str, checkpointing: bool, folder: Path) -> None:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import PrinterCallback

        chosen, self.cuda = SETTINGS[setting], next(model.parameters()).is_cuda
        rows = rows_of(sizes)
        depth = model.config.num_hidden_layers
        config = SelfAugConfig(
            output_dir=str(folder / "run"),
            seed=0,
            alpha=chosen.alpha,
            align_fraction=chosen.fraction,
            reference_cache=str(folder / f"cache-{depth}") if chosen.cached else None,
            max_length=sizes.tokens,
            per_device_train_batch_size=SEQUENCES,
            bf16=dtype.endswith("autocast"),
            use_cpu=not self.cuda,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            max_steps=1,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=32, target_modules="all-linear")
        self.trainer = SelfAugTrainer(
            model,
            config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            peft_config=lora,
        )
        self.trainer.remove_callback(PrinterCallback)
        # One real step sets up what the trainer sets up: checkpointing, autocast, optimiser.
        self.trainer.train()
        self.trainer.state.global_step = step_with_draws(rows, chosen.fraction)
        self.batch = next(iter(self.trainer.get_train_dataloader()))
        self.reference_tokens = 0

    def __call__(self) -> None:
        """Plan, passes, objective, backward, optimiser."""
        device = self.trainer.args.device
        batches, count = self.trainer.get_batch_samples(iter([dict(self.batch)]), 1, device)
        self.reference_tokens = batches[0]["selfaug"].counts["reference_tokens"]
        self.trainer.training_step(self.trainer.model_wrapped, batches[0], count)
        self.trainer.optimizer.step()
        self.trainer.model_wrapped.zero_grad()
        if self.cuda:
            torch.cuda.synchronize()

    def peak_bytes(self) -> int:
        """Peak of the allocator in one step: weights, optimiser's state and what comes and goes; not other steps'."""
        state = [t for each in self.trainer.optimizer.state.values() for t in each.values() if torch.is_tensor(t)]
        own = {id(t): t.numel() * t.element_size() for t in (*self.trainer.model.parameters(), *state)}
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        return int(sum(own.values()) + torch.cuda.max_memory_allocated() - before)


def counted(step: Step) -> float:
    """FLOPs of the products of one step."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        step()
    return float(counter.get_total_flops())


def at_full_depth(values: Mapping[int, float], layers: int) -> float:
    """The straight line through two depths, at all layers."""
    (few, at_few), (many, at_many) = sorted(values.items())
    return at_few + (at_many - at_few) / (many - few) * (layers - few)


def measure(
    sizes: Sizes, depths: tuple[int, int], dtype: str, checkpointing: bool, repeats: int, clock: str, device: str
) -> dict[str, dict[str, Any]]:
    """Of each setting: seconds by depth, the ratio at full depth, counted and least FLOP ratios, peak memory."""
    weights = torch.bfloat16 if dtype.startswith("bfloat16") else torch.float32
    whole = base_model(sizes.shape, max(depths), weights, device)
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            (setting, depth): Step(cut_to(whole, depth), sizes, setting, dtype, checkpointing, Path(folder))
            for depth in depths
            for setting in SETTINGS
        }
        flops = {key: counted(step) for key, step in steps.items()}
        memory = {key: step.peak_bytes() for key, step in steps.items()} if device == "cuda" else {}
        runs: dict[str, Callable[[], object]] = {f"{s}|{d}": step for (s, d), step in steps.items()}
        taken = interleaved(runs, repeats, warm_up=0, clock=clock)
    seconds = {key: taken["{}|{}".format(*key)] for key in steps}
    result = {}
    full = partial(at_full_depth, layers=sizes.shape.layers)
    for setting, chosen in SETTINGS.items():
        middle = {d: statistics.median(seconds[setting, d]) for d in depths}
        base = {d: statistics.median(seconds[ALPHA_0, d]) for d in depths}
        # The ratio of each round, for its spread; noise in a slope is carried over all layers.
        rounds = [
            full({d: seconds[setting, d][i] for d in depths}) / full({d: seconds[ALPHA_0, d][i] for d in depths})
            for i in range(repeats)
        ]
        least = 1.0 if setting == ALPHA_0 else floor(sizes, chosen.fraction, checkpointing, cached=chosen.cached)
        result[setting] = {
            "seconds": {str(d): seconds[setting, d] for d in depths},
            "reference_share": steps[setting, depths[0]].reference_tokens / (SEQUENCES * sizes.tokens),
            "full_depth_seconds": full(middle),
            "ratio": full(middle) / full(base),
            "ratio_rounds": rounds,
            "floor": least,
            "counted": full({d: flops[setting, d] for d in depths}) / full({d: flops[ALPHA_0, d] for d in depths}),
        }
        if memory:
            peak = {d: memory[setting, d] for d in depths}
            full_peak = full(peak)
            result[setting]["peak_bytes"] = {**{str(d): n for d, n in peak.items()}, "full_depth": full_peak}
            result[setting]["memory_ratio"] = full_peak / full({d: memory[ALPHA_0, d] for d in depths})
    return result


def as_row(setting: str, dtype: str, checkpointing: str, f: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    line = [setting, dtype, checkpointing, f"{f['full_depth_seconds']:.3g}", f"{f['ratio']:.3f}"]
    line += [f"{min(f['ratio_rounds']):.3f}-{max(f['ratio_rounds']):.3f}"]
    line += [f"{f['floor']:.3f}", f"{f['counted']:.3f}", f"{f['ratio'] / f['floor']:.3f}"]
    peak = f"{f['peak_bytes']['full_depth'] / 1e9:.2f}" if "peak_bytes" in f else ""
    return [*line, peak, f"{f['memory_ratio']:.3f}" if "peak_bytes" in f else ""]


def demands_of(shape: str, where: str, setting: str, f: Mapping[str, Any]) -> list[Demand]:
    """What one setting must keep to."""
    name = f"{where}, {setting}"
    off = abs(f["counted"] / f["floor"] - 1)
    found = [Demand(f"{name}: ratio over floor", f["ratio"] / f["floor"], within, False) for within in WITHIN]
    found.append(Demand(f"{name}: products counted, off the floor's by", off, COUNT_TOLERANCE, False))
    if shape == "7B" and setting == EIGHTH:
        found.append(Demand(f"{name}: ratio", f["ratio"], EIGHTH_OF_7B, False))
    if "memory_ratio" in f:
        found.append(Demand(f"{name}: peak memory over α = 0", f["memory_ratio"], MEMORY_OVER_ALPHA_0, False))
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="0.5B", help="Of Qwen2.5's models.")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        help="Of the weights. Default float32 and bfloat16 on a CPU, bfloat16+autocast on a GPU.",
    )
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--depths", nargs=2, type=int, default=[2, 4])
    parser.add_argument("--tokens", type=int, help="Of a sequence; 5 %% are the response. 256, or 2,048 on a GPU.")
    add_common_options(parser, repeats=5)
    args = parser.parse_args()
    quiet()
    cuda = args.device == "cuda"
    tokens = args.tokens or (2048 if cuda else 256)
    sizes = Sizes(SHAPES[args.shape], tokens, max(2, round(0.05 * tokens)))
    about = environment()
    where = torch.cuda.get_device_name() if cuda else f"{about['threads']} threads"
    lines, demands, figures = [], [], []
    for dtype in args.dtype or (["bfloat16+autocast"] if cuda else ["float32", "bfloat16"]):
        for checkpointing in args.checkpointing:
            on = checkpointing == "on"
            found = measure(sizes, tuple(args.depths), dtype, on, args.repeats, args.clock, args.device)
            gc.collect()  # trainers are cycles, and hold the last model
            figures.append({"dtype": dtype, "checkpointing": checkpointing, "settings": found})
            for setting, f in found.items():
                lines.append(as_row(setting, dtype, checkpointing, f))
                # A long run that is cut off has said something.
                print("  ".join(lines[-1]), file=sys.stderr, flush=True)
                if setting != ALPHA_0:
                    demands += demands_of(args.shape, f"{dtype}, checkpointing {checkpointing}", setting, f)
    head = ["setting", "weights", "checkpointing", f"s at {sizes.shape.layers}", "ratio", "rounds", "floor", "counted"]
    text = [
        f"Qwen2.5-{args.shape}'s shape, {SEQUENCES} sequences of {sizes.tokens} tokens, {sizes.response} of them "
        f"response; depths {args.depths}; {args.repeats} rounds, {args.clock} clock, {where}, torch {about['torch']}, "
        f"load {about['load_average'][0]}",
        "",
        table([*head, "over floor", "peak GB", "over α = 0"], lines),
    ]
    about_it = {"before": about, "device": where, "sizes": asdict(sizes), "clock": args.clock, "measured": figures}
    return report(text, demands, about_it, args.json)


if __name__ == "__main__":
    sys.exit(main())
