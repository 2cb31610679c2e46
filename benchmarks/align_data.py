r"""Do general texts beside the prompts keep more? Small runs of `--align_data` and its alternatives.

    python benchmarks/align_data.py --shared DIR --data lab --learning_rate 1e-2 --rows 96 --runs FILE

Model, rows, training and both losses are those of `equivalence.py`, on the first rows alone. `own` are texts of the
kind that is to be kept (the lab's skills, their training part; other stories), `foreign` ones of another kind (stories
for the lab, the lab's skills for stories), `self` what the base writes. Each line of FILE is one finished run; a start
runs what is missing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import quiet, table
from paired import mean
from small_runs import METHODS, base_model, load, nll, train

from selfaug.lab.skills import SKILLS, items
from selfaug.lab.world import World

TEXTS = 200

SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "selfaug": {"method": "selfaug"},
    "ewc 4": {"method": "ewc", "method_options": {"ewc_weight": 4.0}},
    "self 0.2": {"align_data": f"self:{TEXTS}", "align_data_share": 0.2},
    "own 0.2": {"align_data": "own", "align_data_share": 0.2},
    "self 0.5": {"align_data": f"self:{TEXTS}", "align_data_share": 0.5},
    "own 0.5": {"align_data": "own", "align_data_share": 0.5},
    "foreign 0.2": {"align_data": "foreign", "align_data_share": 0.2},
    "selfaug 8": {"alpha": 8.0},
    "self 0.2, alpha 8": {"align_data": f"self:{TEXTS}", "align_data_share": 0.2, "alpha": 8.0},
    "selfaug+ewc 1": {"method": "selfaug+ewc", "method_options": {"ewc_weight": 1.0}},
    "replay 0.25": {"method": "replay", "method_options": {"replay_data": "own", "replay_ratio": 0.25}},
}
"""Settings by name; without a method that is `selfaug`, α 2. `own` and `foreign` stand for files."""


def texts(shared: Path, folder: Path) -> dict[str, str]:
    """Files of stories and of the lab's skills."""
    stories = json.loads((shared / "data" / "tinystories" / "tinystories_1000.json").read_text())[-TEXTS:]
    skills = [item for skill in SKILLS for item in items(skill, "train", TEXTS // len(SKILLS), World.make())]
    files = {
        "stories": [{"text": text} for text in stories],
        "skills": [{"messages": [*i.messages(), {"role": "assistant", "content": i.answer}]} for i in skills],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in files}


def with_files(settings: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    """The settings with `own` and `foreign` replaced by their files, also inside a method's options."""
    return {
        name: with_files(value, files)
        if isinstance(value, dict)
        else files.get(value, value) if isinstance(value, str) else value
        for name, value in settings.items()
    }  # fmt: skip


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="Folder with models/stories260k and data/.")
    parser.add_argument("--data", choices=["lab", "mctest"], default="lab")
    parser.add_argument("--learning_rate", type=float, default=1e-2)
    parser.add_argument("--rows", type=int, default=96, help="Training rows, from the first.")
    parser.add_argument("--answers", type=int, default=60, help="Held-out answers, from the first.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, required=True, help="JSON lines of finished runs; kept and added to.")
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    args = parser.parse_args()
    quiet()
    whole = load(args.shared, args.data)
    data = replace(whole, train=whole.train[: args.rows], answers=whole.answers[: args.answers])
    done = [json.loads(line) for line in args.runs.read_text().splitlines()] if args.runs.exists() else []
    about = [args.data, args.learning_rate, args.rows, args.answers]

    def keep(name: str, seed: int, found: dict[str, Any]) -> None:
        done.append({"about": about, "setting": name, "seed": seed, **found})
        with args.runs.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")

    def known(name: str, seed: int) -> bool:
        return any((run["about"], run["setting"], run["seed"]) == (about, name, seed) for run in done)

    if not known("base", 0):
        model = base_model(data)
        keep("base", 0, {"general": mean(nll(model, data.general)), "answers": mean(nll(model, data.answers))})
    with tempfile.TemporaryDirectory() as folder:
        made = texts(args.shared, Path(folder))
        own, foreign = ("skills", "stories") if args.data == "lab" else ("stories", "skills")
        files = {"own": made[own], "foreign": made[foreign]}
        for seed in range(args.seeds):
            for name in args.only:
                if known(name, seed):
                    continue
                METHODS[name] = {"method": "selfaug", "alpha": 2.0, **with_files(SETTINGS[name], files)}
                if "selfaug" not in METHODS[name]["method"]:
                    del METHODS[name]["alpha"]
                run = train(data, name, seed, learning_rate=args.learning_rate, generation_length=64)
                keep(name, seed, {"general": mean(run["general"]), "answers": mean(run["answers"]),
                                  "steps": run["steps"], "seconds": run["seconds"]})  # fmt: skip
    show([run for run in done if run["about"] == about])


def show(runs: list[dict[str, Any]]) -> None:
    """Means over seeds, and the share of what plain LoRA loses that is kept."""
    names = list(dict.fromkeys(run["setting"] for run in runs))
    means = {
        name: [
            sum(r[what] for r in runs if r["setting"] == name) / sum(r["setting"] == name for r in runs)
            for what in ("answers", "general")
        ]
        for name in names
    }
    lines = []
    for name, (answers, general) in means.items():
        kept = ""
        if "sft" in means and name not in ("base", "sft"):
            kept = f"{(means['sft'][1] - general) / (means['sft'][1] - means['base'][1]):.0%}"
        steps = next((r["steps"] for r in runs if r["setting"] == name and "steps" in r), "")
        lines.append([name, str(steps), f"{answers:.4f}", f"{general:.4f}", kept])
    print(table(["setting", "steps", "answer NLL", "general NLL", "kept of LoRA's loss"], lines))


if __name__ == "__main__":
    main()
