"""What LoRA loses in another trainer on stories260k and MCTest, and what SelfAug wins back there.

    python benchmarks/in_hosts.py rows --shared DIR --output FOLDER
    python benchmarks/in_hosts.py measure --shared DIR sft=ADAPTER selfaug=ADAPTER

`rows` writes `rows.jsonl`: the tokens and labels of the MCTest questions that `mctest_stories260k.py` trains on, for a
trainer that takes tokenised rows; and `messages.jsonl`: the same as text, question and answer, for one that makes its
own. `measure` opens adapters with PEFT alone, and measures what that benchmark does: the
NLL of 150 stories (what the base knew) and of the held-out answers (what is learnt). Several seeds of a name are
separated by commas. Retention is the share of plain LoRA's loss on stories that is won back.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mctest_stories260k import retention
from paired import LOSSES, difference, mean, middle, resampled
from small_runs import Data, Row, base_model, load, nll


def losses(model: Any, data: Data) -> dict[str, Any]:
    """The NLL of stories and answers, item by item."""
    return {"general": nll(model, data.general), "answers": nll(model, data.answers)}


def turns(tokenizer: Any, row: Row) -> list[dict[str, str]]:
    """A row as a question and an answer, without the tokens that begin and end it."""
    prompt = row.labels.count(-100)
    question, answer = (
        tokenizer.decode(ids, skip_special_tokens=True).strip()
        for ids in (row.input_ids[:prompt], row.input_ids[prompt:])
    )
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def main() -> None:
    """Write the rows, or print what adapters kept and learnt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["rows", "measure"])
    parser.add_argument("adapters", nargs="*", metavar="NAME=FOLDER[,FOLDER...]", help="sft and selfaug.")
    parser.add_argument("--shared", type=Path, required=True, help="Folder with models/stories260k and data/.")
    parser.add_argument("--output", type=Path, help="Folder for the rows.")
    args = parser.parse_intermixed_args()  # adapters may follow the options
    data = load(args.shared)
    if args.verb == "rows":
        rows = [
            {"input_ids": r.input_ids, "attention_mask": [1] * len(r.input_ids), "labels": r.labels} for r in data.train
        ]
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        messages = [{"messages": turns(data.tokenizer, r)} for r in data.train]
        text = "".join(json.dumps(row) + "\n" for row in messages)
        (args.output / "messages.jsonl").write_text(text, encoding="utf-8")
        print(f"{len(rows)} rows")
        return

    from peft import PeftModel

    base = losses(base_model(data), data)
    print(f"base: stories {mean(base['general']):.4f}, answers {mean(base['answers']):.4f}")
    runs: dict[str, list[dict[str, Any]]] = {}
    for given in args.adapters:
        name, _, folders = given.partition("=")
        for folder in folders.split(","):
            run = losses(PeftModel.from_pretrained(base_model(data), folder), data)
            print(f"{name} ({folder}): stories {mean(run['general']):.4f}, answers {mean(run['answers']):.4f}")
            runs.setdefault(name, []).append(run)
    if {"sft", "selfaug"} <= runs.keys():
        means = {
            (name, what): mean([item for run in found for item in run[what]])
            for name, found in {**runs, "base": [base]}.items()
            for what in LOSSES
        }
        asked = {
            "retention": retention("selfaug"),
            "answer NLL, selfaug - sft": difference("selfaug", "sft", "answers"),
        }
        for title, statistic in asked.items():
            low, high = middle(resampled(runs, base, statistic))
            print(f"{title}: {statistic(means):.4f} [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
    main()
