r"""Does a model forget more the further fine-tuning moves its distribution? And how closely do the two go together?

    python benchmarks/shift_forgetting.py --shared DIR --work FOLDER --document docs/results/shift.md \
        --picture docs/images/shift-forgetting.svg

`DIR/models/stories260k`, a language model of children's stories, is tuned on the questions of `DIR/data/mctest` (mc160
and mc500, training parts, whose whole story fits 512 tokens) in the ways of ``RUNS``: plain LoRA and SelfAug at several
strengths, learning rates, lengths of training and of context. Each is one `selfaug train`, one `selfaug shift`, and all
together one `selfaug relate`: what a user would type. The shift is KL(base ‖ tuned) at the prompt positions of held-out
questions; forgetting is the rise of the NLL of 150 stories of `DIR/data/tinystories`, both in nats per token. Runs that
lie finished in ``FOLDER`` are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import environment

__all__ = ["RUNS", "Run", "main"]

CONTEXT = 512
STORIES = 150
QUESTIONS = 100
RESAMPLES = 10_000
# The model knows neither instructions nor headings: the story, the question, the cue.
PROMPT = {"system": "", "document_untitled": ""}
TRAINING = {
    "per_device_train_batch_size": 16,
    "bf16": "false",
    "gradient_checkpointing": "false",
    "lora_r": 16,
    "lora_alpha": 32,
    "save_strategy": "epoch",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": "true",
    "use_cpu": "true",
    "prompt": json.dumps(PROMPT),
}
_TITLE = "# Does shift foretell forgetting?"


@dataclass(frozen=True)
class Run:
    """One way of fine-tuning; α = 0 is plain LoRA."""

    alpha: float
    learning_rate: float = 2e-3
    epochs: int = 1
    max_length: int = CONTEXT
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder, and in tables."""
        return f"a{self.alpha:g}-lr{self.learning_rate:g}-e{self.epochs}-len{self.max_length}-s{self.seed}"

    def flags(self, shared: Path, data: Path, output: Path) -> list[str]:
        """Of `selfaug train`."""
        values = {
            "model_name_or_path": shared / "models" / "stories260k",
            "dataset_name": data,
            "output_dir": output,
            "method": "selfaug" if self.alpha else "sft",
            **({"alpha": self.alpha} if self.alpha else {}),
            "learning_rate": self.learning_rate,
            "num_train_epochs": self.epochs,
            "max_length": self.max_length,
            "seed": self.seed,
            **TRAINING,
        }
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]


RUNS = (
    *(Run(alpha) for alpha in (0, 0.1, 0.5, 2, 5)),
    *(Run(alpha, learning_rate=5e-3) for alpha in (0, 0.5, 2)),
    Run(0, learning_rate=5e-4),
    *(Run(alpha, max_length=256) for alpha in (0, 2)),
    *(Run(alpha, epochs=2) for alpha in (0, 0.1, 2)),
    *(Run(alpha, seed=1) for alpha in (0, 2)),
)


def write_data(shared: Path, folder: Path) -> dict[str, int]:
    """Training and held-out questions as JSONL, and the stories; those whose story does not fit whole are left out."""
    from transformers import AutoTokenizer

    from selfaug.data.encode import encode
    from selfaug.data.prompts import Renderer
    from selfaug.data.read import read_rows
    from selfaug.data.record import Record

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    renderer = Renderer.for_tokenizer(tokenizer, **PROMPT)
    counts = {}
    for name, parts in (("train", ("train",)), ("held_out", ("dev", "test"))):
        files = [shared / "data" / "mctest" / f"{source}.{part}.tsv" for source in ("mc160", "mc500") for part in parts]
        records = [item for file in files for item in read_rows(file).items if isinstance(item, Record)]
        encoded = encode(records, tokenizer, renderer, max_length=None)
        kept = [
            records[place]
            for place, row in zip(encoded.places, encoded.rows, strict=True)
            if len(row["input_ids"]) <= CONTEXT
        ]
        lines = [json.dumps(record.to_row(), ensure_ascii=False) for record in kept]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        counts[name] = len(kept)
    texts = json.loads((shared / "data" / "tinystories" / "tinystories_1000.json").read_text())[:STORIES]
    (folder / "stories.json").write_text(json.dumps(texts), encoding="utf-8")
    return counts | {"stories": len(texts)}


def selfaug(*words: object) -> str:
    """What a verb writes to stdout; its talk goes through."""
    command = [sys.executable, "-m", "selfaug", *map(str, words)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"`{shlex.join(command)}` ended with {found.returncode}")
    return found.stdout


def train_and_measure(shared: Path, folder: Path, run: Run) -> Path:
    """The run's folder, trained and with its ``shift.json``; what is there already is kept."""
    output = folder / run.name
    start = time.perf_counter()
    if not (output / "adapter").is_dir():
        unfinished = ["--resume_from_checkpoint", "true"] if list(output.glob("checkpoints/checkpoint-*")) else []
        selfaug("train", *run.flags(shared, folder / "train.jsonl", output), *unfinished)
    trained = time.perf_counter()
    selfaug(
        "shift", output, "--dataset_name", folder / "held_out.jsonl", "--limit", QUESTIONS,
        "--general_text", folder / "stories.json", "--general_limit", 0, "--max_length", CONTEXT,
        "--checkpoints", "last",
    )  # fmt: skip
    print(f"{run.name}: {trained - start:.0f} s training, {time.perf_counter() - trained:.0f} s shift", file=sys.stderr)
    return output


def related(outputs: list[Path], *words: object) -> dict[str, Any]:
    """What `selfaug relate` finds."""
    found: dict[str, Any] = json.loads(selfaug("relate", *outputs, "--resamples", RESAMPLES, "--json", *words))
    return found


def cell(coefficient: dict[str, Any]) -> str:
    """Value and interval."""
    return f"{coefficient['value']:.2f} [{coefficient['low']:.2f}, {coefficient['high']:.2f}]"


def page(outputs: list[Path], counts: dict[str, int], picture: str) -> str:
    """The page, made from what the verbs give."""
    whole = related(outputs)
    plain = [path for path, run in zip(outputs, RUNS, strict=True) if run.alpha == 0]
    rows = [
        ("prompts", outputs, ()),
        ("prompts, KL(tuned ‖ base)", outputs, ("--direction", "tuned_to_base")),
        ("responses", outputs, ("--where", "response")),
        ("the stories themselves", outputs, ("--where", "general_text")),
        ("prompts, plain LoRA alone", plain, ()),
    ]
    table = []
    for name, chosen, words in rows:
        found = related(chosen, *words)
        table.append(f"| {name} | {found['runs']} | {cell(found['pearson'])} | {cell(found['spearman'])} |")
    points = {point["run"]: point for point in whole["of"]}
    runs = [
        f"| {run.alpha:g} | {run.learning_rate:g} | {run.epochs} | {run.max_length} | {run.seed} "
        f"| {points[run.name]['shift']:.3f} | {points[run.name]['forgetting']:+.3f} |"
        for run in sorted(RUNS, key=lambda run: points[run.name]["shift"])
    ]
    about = environment()
    certain = min(whole["pearson"]["low"], whole["spearman"]["low"]) > 0
    claim = "Runs that moved the model further on the task's prompts forgot more: over" if certain else "Over"
    return "\n".join([
        _TITLE,
        "",
        f"{claim} {whole['runs']} runs, Pearson's "
        f"coefficient of shift and forgetting is **{cell(whole['pearson'])}** and Spearman's "
        f"**{cell(whole['spearman'])}** (95 % intervals, {whole['pearson']['how']}, {RESAMPLES:,} resamples).",
        "",
        f"![Shift on prompts against the rise of the stories' NLL, a mark a run]({picture})",
        "",
        f"Each mark is one training of stories260k on {counts['train']} MCTest questions (LoRA r 16 on all linear "
        f"layers, batch 16); `sft` is plain LoRA. Shift: KL(base ‖ tuned) at the prompt positions of "
        f"{QUESTIONS} held-out questions. Forgetting: NLL of {counts['stories']} stories after minus before. Both in "
        "nats per token.",
        "",
        "| shift measured on | runs | Pearson | Spearman |",
        "|---|---|---|---|",
        *table,
        "",
        "| α | learning rate | epochs | max_length | seed | shift | forgetting |",
        "|---|---|---|---|---|---|---|",
        *runs,
        "",
        "**Not shown**: the runs differ in α, learning rate, length and seed together, on one small model "
        "and one task, and its prompts are themselves children's stories, close to the text whose loss is measured. A "
        "coefficient over runs that were chosen to differ says that the two go together here, not how closely they "
        "would where task and general text are far apart, nor that one causes the other.",
        "",
        f"Command: `python benchmarks/shift_forgetting.py --shared DIR --work FOLDER --document docs/results/shift.md "
        f"--picture docs/images/{Path(picture).name}`; seeds as in the table, bootstrap seed 0; torch "
        f"{about['torch']}, transformers {about['transformers']}, peft {about['peft']}, float32 on a CPU.",
        "",
    ])  # fmt: skip


def main() -> int:
    """Train and measure what is missing, relate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="Folder with models/stories260k and data/.")
    parser.add_argument("--work", type=Path, required=True, help="Folder of the runs; finished ones are kept.")
    parser.add_argument("--document", type=Path, help="Markdown page to write.")
    parser.add_argument("--picture", type=Path, help="SVG or PNG.")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    args.work.mkdir(parents=True, exist_ok=True)
    counts = write_data(args.shared, args.work)
    outputs = [train_and_measure(args.shared, args.work, run) for run in RUNS]
    drawn = ["--output", args.picture] if args.picture is not None else []
    print(selfaug("relate", *outputs, "--resamples", RESAMPLES, *drawn))
    if args.document is not None:
        picture = args.picture or args.document.with_name("shift-forgetting.svg")
        text = page(outputs, counts, os.path.relpath(picture, args.document.parent))
        args.document.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
