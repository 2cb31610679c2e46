r"""How much of a run's tuning does a merged model keep, by the number format and rounding that it is written with?

    python benchmarks/merge_kept.py rows --shared DIR --output rows.jsonl       # SQuAD with short passages
    selfaug train --model_name_or_path smollm2 --dataset_name rows.jsonl --held_out 0.3 --output_dir run-10 \
        --max_length 256 --per_device_train_batch_size 1 --gradient_checkpointing false --learning_rate 2e-4 \
        --lora_r 16 --max_steps 10
    python benchmarks/merge_kept.py measure run-10 run-300 --json figures.json

Each run's adapter is folded into its base as it is and into a copy of it in bfloat16 (most models are published so),
and written in each way of ``WAYS``. *Kept* is <M - W, D> / <D, D>, with W the base's weights, D what the adapter adds
and M what is written; *changed* is the share of adapted weights that are not the base's; KL is from the adapter's
outputs, at the tokens of its greedy answers to prompts that the run held out; *same* counts the greedy answers that are
the adapter's. The last way is what `selfaug merge --dtype bfloat16` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure import table
from torch import Tensor
from transformers import AutoModelForCausalLM

from selfaug.cli.encoding import load_tokenizer
from selfaug.cli.merge import run_prompts
from selfaug.data.prompts import Renderer
from selfaug.evaluation.merging import Answers, Rounding, Share, stochastically, write_weights
from selfaug.run.folder import RunFolder
from selfaug.run.models import Origin, Sides, check_origin

LONGEST_PASSAGE = 480


def nearest(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """The nearest value of the format."""
    return values.to(dtype)


def carried(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """The nearest, after what the weight before it in the row was rounded by is added."""
    written = torch.empty_like(values, dtype=dtype)
    error = torch.zeros_like(values[..., 0])
    for column in range(values.shape[-1]):
        wanted = values[..., column] + error
        written[..., column] = wanted.to(dtype)
        error = wanted - written[..., column].float()
    return written


# None: PEFT's merge in the written format, which rounds the base and the adapter's part before it adds them.
WAYS: dict[str, tuple[torch.dtype, Rounding | None]] = {
    "float32": (torch.float32, nearest),
    "float16, nearest": (torch.float16, nearest),
    "bfloat16, PEFT's merge": (torch.bfloat16, None),
    "bfloat16, nearest": (torch.bfloat16, nearest),
    "bfloat16, error carried along the row": (torch.bfloat16, carried),
    "bfloat16, stochastic": (torch.bfloat16, stochastically),
}


def rows(shared: Path, output: Path) -> None:
    """Write SQuAD's questions on short passages, at most five a passage, in an order of chance."""
    articles = json.loads((shared / "data" / "squad" / "dev-v1.1.json").read_text(encoding="utf-8"))["data"]
    found = [
        {
            "question": asked["question"],
            "documents": [{"title": article["title"].replace("_", " "), "text": passage["context"]}],
            "answer": list(dict.fromkeys(answer["text"] for answer in asked["answers"])),
        }
        for article in articles
        for passage in article["paragraphs"]
        if len(passage["context"]) <= LONGEST_PASSAGE
        for asked in passage["qas"][:5]
    ]
    random.Random(0).shuffle(found)
    output.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def measure(run: Path, count: int, base_format: str, ways: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of one run over its base in one number format, one entry a way of writing."""
    folder = RunFolder.open(str(run))
    origin = check_origin(folder)
    tokenizer, renderer = load_tokenizer(folder.adapter), Renderer.load(folder.adapter)
    prompts = run_prompts(folder, tokenizer, renderer, origin.context, count)
    with tempfile.TemporaryDirectory() as work:
        if base_format != "own":
            copy = AutoModelForCausalLM.from_pretrained(origin.base, dtype=getattr(torch, base_format))
            copy.save_pretrained(work)
            origin = dataclasses.replace(origin, base=work)
        sides = Sides(origin, "float32")
        answers = Answers.of(sides, tokenizer, renderer, prompts)
        return [_way(way, origin, sides, answers) | {"run": run.name, "base": base_format} for way in ways]


def _way(way: str, origin: Origin, sides: Sides, answers: Answers) -> dict[str, Any]:
    dtype, rounding = WAYS[way]
    with Sides(dataclasses.replace(origin, switchable=False)).side("base") as base:
        model = sides.fold()
        if rounding is not None:
            shares = write_weights(model, base, dtype, rounding)
        else:
            start = dict(base.named_parameters())
            written = Sides(origin, str(dtype).removeprefix("torch.")).fold()
            shares = {}
            for (name, tuned), there in zip(model.named_parameters(), written.parameters(), strict=True):
                if not torch.equal(tuned, start[name].float()):
                    shares[name] = Share.of(there, tuned, start[name].float())
            model = written
    total = sum(shares.values(), Share())
    worst = min(shares, key=lambda name: shares[name].kept)
    said = answers.compare(model.float())
    print(f"{way}: {shares[worst].kept:.3f} .. {total.kept:.4f}, {said}", file=sys.stderr, flush=True)
    return {
        "way": way,
        "kept": total.kept,
        "worst": worst,
        "worst_kept": shares[worst].kept,
        "changed": total.changed / total.count,
        **dataclasses.asdict(said),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write rows, or measure runs; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    data = verbs.add_parser("rows")
    data.add_argument("--shared", type=Path, required=True)
    data.add_argument("--output", type=Path, required=True)
    figures = verbs.add_parser("measure")
    figures.add_argument("runs", type=Path, nargs="+")
    figures.add_argument("--prompts", type=int, default=50)
    figures.add_argument("--base_dtype", nargs="+", default=["own", "bfloat16"])
    figures.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    figures.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.verb == "rows":
        rows(args.shared, args.output)
        return 0
    found = []
    for run in args.runs:
        for base_format in args.base_dtype:
            found += measure(run, args.prompts, base_format, args.ways)
            if args.json is not None:
                args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    head = ("run, base, written", "kept", "least", "changed", "KL", "KL of the base", "same", "of")
    lines = [
        (
            f"{one['run']}, {one['base']}, {one['way']}",
            f"{one['kept']:.3f}",
            f"{one['worst_kept']:.3f}",
            f"{one['changed']:.3f}",
            f"{one['kl']:.1e}",
            f"{one['base_kl']:.2f}",
            one["same"],
            one["prompts"],
        )
        for one in found
    ]
    print(table(head, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
