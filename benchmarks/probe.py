"""What does the probe of general ability add to an optimiser step?

    python benchmarks/probe.py --model ../shared/models/stories260k

One trainer with a probe; an optimiser step and a probe take turns in one process. The figure is seconds of a probe over
seconds of a step, and that divided by the steps between probes, in per cent.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile

from datasets import Dataset
from measure import environment, interleaved, quiet
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfaug import SelfAugConfig, SelfAugTrainer
from selfaug.training.probe import random_state_kept, summary


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=8, help="Rows of a step.")
    parser.add_argument("--length", type=int, default=384, help="Tokens of a row, of which 32 are the response.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--every", type=int, nargs="*", default=[10, 50, 200])
    args = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        config = SelfAugConfig(
            output_dir=folder, max_steps=1, per_device_train_batch_size=args.rows, bf16=False, save_strategy="no",
            gradient_checkpointing=False, report_to="none", disable_tqdm=True, probe="general", max_length=args.length,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        pick = random.Random(0)
        ids = [[pick.randrange(10, len(tokenizer)) for _ in range(args.length)] for _ in range(args.rows)]
        rows = [{"input_ids": row, "labels": [-100] * (len(row) - 32) + row[-32:]} for row in ids]
        trainer = SelfAugTrainer(
            AutoModelForCausalLM.from_pretrained(args.model), config, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer, peft_config=LoraConfig(r=16, target_modules="all-linear"),
        )  # fmt: skip
        trainer.train()

        def step() -> None:
            batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
            trainer.model.train()
            trainer.training_step(trainer.model_wrapped, batches[0])
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        def probe() -> None:
            with random_state_kept():
                summary(trainer._measure_probe())

        seconds = interleaved({"step": step, "probe": probe}, args.repeats, clock="cpu")
    ratio = statistics.median(p / s for p, s in zip(seconds["probe"], seconds["step"], strict=True))
    tokens = sum(len(row["input_ids"]) for row in trainer._probe_rows)
    print(environment())
    print(f"{len(trainer._probe_rows)} items of {tokens} tokens; a step of {args.rows} x {args.length} tokens")
    print(f"a probe takes {ratio:.2f} steps")
    for every in args.every:
        print(f"every {every} steps: {100 * ratio / every:.2f} % of a step")


if __name__ == "__main__":
    main()
