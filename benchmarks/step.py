"""What does alignment add to an optimiser step, against the least arithmetic that it needs?

    python benchmarks/step.py --dtype float32 bfloat16 --checkpointing off on

A random model of Qwen2.5-0.5B's shape (hidden 896, 14 heads, 2 of them for keys and values, intermediate 4,864,
vocabulary 151,936, tied) with LoRA r 16 on all linear layers, at two depths; seconds are extrapolated linearly to 24
layers. Steps are the trainer's own: plan, both passes, objective, backward, optimiser. Settings and depths take turns
in one process. For the share 1/8, 8 sequences of one length make a step, and its number is chosen among those in which
the draw takes exactly one of them.

The floor (`step_model.floor`) is the ratio of the products' FLOPs that the two steps cannot do without; what the steps
really multiply is counted beside it with torch's FLOP counter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from measure import Demand, add_common_options, environment, interleaved, quiet, report, table
from step_model import LAYERS, RANK, SEQUENCES, Sizes, base_model, cut_to, floor, rows_of, step_with_draws, tokenizer
from torch.utils.flop_counter import FlopCounterMode

from selfaug import SelfAugConfig, SelfAugTrainer

ALPHA_0 = "α = 0"
SETTINGS: dict[str, tuple[float, float]] = {ALPHA_0: (0.0, 1.0), "α = 2": (2.0, 1.0), "α = 2, 1/8": (2.0, 0.125)}
WITHIN = 1.15
# The counter does not know attention's kernel on a CPU, and counts what the first layer is spared.
COUNT_TOLERANCE = 0.05
DTYPES = ("float32", "bfloat16", "autocast")


class Step:
    """A trainer on its own copy of the adapter; calling it does one optimiser step."""

    def __init__(self, model: Any, sizes: Sizes, setting: str, dtype: str, checkpointing: bool, folder: str) -> None:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import PrinterCallback

        alpha, fraction = SETTINGS[setting]
        rows = rows_of(sizes)
        config = SelfAugConfig(
            output_dir=folder,
            seed=0,
            alpha=alpha,
            align_fraction=fraction,
            max_length=sizes.tokens,
            per_device_train_batch_size=SEQUENCES,
            bf16=dtype == "autocast",
            use_cpu=True,
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
        self.trainer.state.global_step = step_with_draws(rows, fraction)
        self.batch = next(iter(self.trainer.get_train_dataloader()))
        self.reference_tokens = 0

    def __call__(self) -> None:
        """Plan, passes, objective, backward, optimiser."""
        batches, count = self.trainer.get_batch_samples(iter([dict(self.batch)]), 1, torch.device("cpu"))
        self.reference_tokens = batches[0]["selfaug"]["reference_tokens"]
        self.trainer.training_step(self.trainer.model_wrapped, batches[0], count)
        self.trainer.optimizer.step()
        self.trainer.model_wrapped.zero_grad()


def counted(step: Step) -> float:
    """FLOPs of the products of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def at_full_depth(values: Mapping[int, float]) -> float:
    """The straight line through two depths, at 24 layers."""
    (few, at_few), (many, at_many) = sorted(values.items())
    return at_few + (at_many - at_few) / (many - few) * (LAYERS - few)


def measure(
    sizes: Sizes, depths: tuple[int, int], dtype: str, checkpointing: bool, repeats: int, clock: str
) -> dict[str, dict[str, Any]]:
    """Of each setting: seconds by depth, the ratio at full depth, counted and least FLOP ratios."""
    whole = base_model(max(depths), dtype)
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            (setting, depth): Step(cut_to(whole, depth), sizes, setting, dtype, checkpointing, folder)
            for depth in depths
            for setting in SETTINGS
        }
        flops = {key: counted(step) for key, step in steps.items()}
        runs: dict[str, Callable[[], object]] = {f"{s}|{d}": step for (s, d), step in steps.items()}
        taken = interleaved(runs, repeats, warm_up=0, clock=clock)
    seconds = {key: taken["{}|{}".format(*key)] for key in steps}
    result = {}
    base_flops = at_full_depth({d: flops[ALPHA_0, d] for d in depths})
    for setting, (_, fraction) in SETTINGS.items():
        middle = {d: statistics.median(seconds[setting, d]) for d in depths}
        base = {d: statistics.median(seconds[ALPHA_0, d]) for d in depths}
        # The ratio of each round, for its spread; noise in a slope over two layers is carried over twenty-two.
        rounds = [
            at_full_depth({d: seconds[setting, d][i] for d in depths})
            / at_full_depth({d: seconds[ALPHA_0, d][i] for d in depths})
            for i in range(repeats)
        ]
        least = 1.0 if setting == ALPHA_0 else floor(sizes, fraction, LAYERS, checkpointing)
        reference = {d: steps[setting, d].reference_tokens for d in depths}
        arithmetic = at_full_depth({d: flops[setting, d] for d in depths}) / base_flops
        if abs(arithmetic / least - 1) > COUNT_TOLERANCE:
            raise RuntimeError(
                f"{setting}: the floor says {least:.3f}, the products counted {arithmetic:.3f}; the steps are not what "
                "the floor describes"
            )
        result[setting] = {
            "seconds": {str(d): seconds[setting, d] for d in depths},
            "reference_share": reference[depths[0]] / (SEQUENCES * sizes.tokens),
            "full_depth_seconds": at_full_depth(middle),
            "ratio": at_full_depth(middle) / at_full_depth(base),
            "ratio_rounds": rounds,
            "floor": least,
            "counted": arithmetic,
        }
    return result


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"], help="Of the weights.")
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--depths", nargs=2, type=int, default=[2, 4])
    parser.add_argument("--tokens", type=int, default=256, help="Of a sequence; 5 %% of them are the response.")
    add_common_options(parser, repeats=5)
    args = parser.parse_args()
    quiet()
    sizes = Sizes(args.tokens, max(2, round(0.05 * args.tokens)))
    about = environment()
    one = partial(measure, sizes, tuple(args.depths), repeats=args.repeats, clock=args.clock)
    lines, demands, figures = [], [], []
    for dtype in args.dtype:
        for checkpointing in args.checkpointing:
            found = one(dtype=dtype, checkpointing=checkpointing == "on")
            figures.append({"dtype": dtype, "checkpointing": checkpointing, "settings": found})
            for setting, f in found.items():
                spread = f"{min(f['ratio_rounds']):.2f}-{max(f['ratio_rounds']):.2f}"
                line = [setting, dtype, checkpointing, f"{f['full_depth_seconds']:.1f}", f"{f['ratio']:.3f}", spread]
                over = f["ratio"] / f["floor"]
                lines.append([*line, f"{f['floor']:.3f}", f"{f['counted']:.3f}", f"{over:.3f}"])
                if setting != ALPHA_0:
                    name = f"{dtype}, checkpointing {checkpointing}, {setting}: ratio over floor"
                    demands.append(Demand(name, over, WITHIN, False))
    head = ["setting", "weights", "checkpointing", "s at 24", "ratio", "rounds", "floor", "counted", "over floor"]
    text = [
        f"{SEQUENCES} sequences of {sizes.tokens} tokens, {sizes.response} of them response; depths {args.depths}; "
        f"{args.repeats} rounds, {args.clock} clock, {about['threads']} threads, torch "
        f"{about['torch']}, load {about['load_average'][0]}",
        "",
        table(head, lines),
    ]
    return report(
        text, demands, {"before": about, "sizes": vars(sizes), "clock": args.clock, "measured": figures}, args.json
    )


if __name__ == "__main__":
    sys.exit(main())
