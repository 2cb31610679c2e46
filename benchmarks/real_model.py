"""Does SelfAug hold on a real instruct model? A study of SmolLM2-135M-Instruct on SQuAD that goes on where it was.

    python benchmarks/real_model.py run --work FOLDER --results docs/studies/real-model [--budget_minutes N]
    python benchmarks/real_model.py status --results docs/studies/real-model
    python benchmarks/real_model.py show --results docs/studies/real-model [--picture docs/images/real-model.svg]

`run` does what is not done yet, in order, until all is done, its budget is spent, or it is stopped. Weights,
checkpoints and the base's answers lie in FOLDER; what a finished run found, in a small JSON file of its own in the
folder of results. Several may go on at once on one FOLDER. What is measured and why: docs/real-model.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from real_model_plan import TRAINING, Setting, finished, hours, order, stages, tokens

from selfaug.common.fingerprint import versions
from selfaug.common.quiet import quieten
from selfaug.common.store import Store, key_of, write_whole
from selfaug.run.folder import RunFolder
from selfaug.run.manifest import device, git_state

ROOT = Path(__file__).resolve().parents[1]
GRACE_SECONDS = 300
"""For a training that was told to stop to write its checkpoint."""
CHUNK = 64
"""Prompts that the base answers between two writes."""


class Stopped(Exception):  # noqa: N818 - no error
    """The budget is spent, or somebody asked to stop; everything so far is kept."""


@dataclass
class Session:
    """One call of `run`: where things lie, and when it ends.

    Args:
        work: Folder of everything that is not committed.
        results: Where finished runs are told.
        shared: Folder with the data.
        deadline: On the monotonic clock.
        say: Gets a line for each thing done.
    """

    work: Path
    results: Store
    shared: Path
    deadline: float
    say: Callable[[str], None] = field(default=print)

    @cached_property
    def model(self) -> str:
        """Folder of the model, fetched at first use."""
        from selfaug.lab.smollm2 import fetch

        return str(fetch())

    @cached_property
    def tokenizer(self) -> Any:
        """Of the model."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model)

    def check_time(self) -> None:
        """Raise where the budget is spent."""
        if time.monotonic() >= self.deadline:
            raise Stopped

    @contextlib.contextmanager
    def alone(self, name: str, *, wait: bool = False) -> Iterator[int | None]:
        """A lock on a piece of the work, which its processes inherit; ``None`` where another session has it."""
        path = self.work / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            yield file.fileno()


def work_through(session: Session) -> bool:
    """Do what is not done; whether everything is."""
    prepare(session)
    passed: set[Setting] = set()
    while True:
        done = finished(session.results)
        waiting = [setting for setting in order() if setting not in done and setting not in passed]
        if not waiting:
            return not passed
        setting = waiting[0]
        session.check_time()
        with session.alone(setting.training.name) as lock:
            if lock is None:  # another session has it, or the adapter that it needs
                passed.add(setting)
                continue
            if session.results.get(setting.name, setting.key) is None:
                one(session, setting, lock)


def prepare(session: Session) -> None:
    """Write the rows, the prompts and the base's answers, once."""
    from real_model_data import DIGESTS, digest, replay_rows, task_rows, write

    with session.alone("prepare", wait=True):
        for documents in DIGESTS:
            folder = session.work / "data"
            if (folder / f"{documents}doc-replay.jsonl").exists():  # the last that is written
                continue
            records = task_rows(session.shared, session.tokenizer, documents)
            parts = {name: [record.to_row() for record in rows] for name, rows in records.items()}
            parts["replay"] = replay_rows(session.shared)
            if digest(parts) != DIGESTS[documents]:
                raise SystemExit(
                    f"error: the rows with {documents} documents are not those of the study: their digest is "
                    f"{digest(parts)}, not {DIGESTS[documents]}\n\n"
                    "hint: restore the data and real_model_data.py; rows that are meant to change need a new VERSION."
                )
            for name, rows in parts.items():
                write(folder / f"{documents}doc-{name}.jsonl", rows)


def rows_of(session: Session, documents: int, part: str) -> list[Any]:
    """The records of a part."""
    from selfaug.data.read import read_rows

    return list(read_rows(session.work / "data" / f"{documents}doc-{part}.jsonl").items)


def one(session: Session, setting: Setting, lock: int) -> None:
    """Train and measure one run, and tell it."""
    session.say(f"{time.strftime('%H:%M')} {setting.name}")
    folder = session.work / "runs" / setting.training.name
    adapter = None if setting.method == "base" else train(session, setting.training, folder, lock)
    parts, measuring, answers = measure(session, setting, adapter)
    spent = _read(folder / "seconds.json") if tokens(setting) else {}
    body = {
        "setting": setting.to_json(),
        "commit": (git_state(ROOT) or {}).get("commit"),
        "versions": versions(),
        "device": {**device(), "processor": processor(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "seconds": {"train": spent.get("processor", 0.0), "train_wall": spent.get("wall", 0.0), "measure": measuring},
        "tokens": tokens(setting),
        "answers": answers,
        "parts": parts,
    }
    session.results.put(setting.name, setting.key, body)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def train(session: Session, setting: Setting, folder: Path, lock: int) -> Path:
    """The adapter of a run: trained, gone on with, or found finished."""
    run = RunFolder(folder)
    if run.finished is None:
        again = ["--resume_from_checkpoint", "true"] if run.has_checkpoint() else ["--overwrite_output_dir", "true"]
        words = [*train_words(session, setting), "--output_dir", str(folder), *again]
        log = folder.with_name(f"{folder.name}.log")
        folder.parent.mkdir(parents=True, exist_ok=True)
        code = _spawn(session, words, log, folder, lock)
        if code:
            if code in (130, 143, -15, -2):
                raise Stopped
            raise SystemExit(f"error: {setting.name} ended with {code}\n\nhint: see {log}.")
    assert run.finished is not None
    return run.finished


def train_words(session: Session, setting: Setting) -> list[str]:
    """Words of `selfaug train`."""
    words: dict[str, Any] = {
        "model_name_or_path": session.model,
        "dataset_name": session.work / "data" / f"{setting.documents}doc-train.jsonl",
        "method": setting.method,
        "learning_rate": setting.rate,
        "num_train_epochs": setting.epochs,
        "seed": setting.seed,
        "save_strategy": "steps",
        "save_steps": 10,
        "save_total_limit": 1,
        "logging_steps": 5,
        "report_to": "none",
        "use_cpu": True,
        **TRAINING,
    }
    own = dict(setting.options)
    for name in ("alpha", "align_fraction"):
        if name in own:
            words[name] = own.pop(name)
    if setting.method == "selfaug":
        words["reference_cache"] = session.work / f"reference-{setting.documents}doc"
    if setting.method == "replay":
        own["replay_data"] = str(session.work / "data" / f"{setting.documents}doc-replay.jsonl")
    if own:
        words["method_options"] = json.dumps(own)
    return ["train", *(str(word) for name, value in words.items() for word in (f"--{name}", value))]


def _spawn(session: Session, words: list[str], log: Path, folder: Path, lock: int) -> int:
    """The exit code of a verb in a process of its own, which is told to stop at the deadline; its time is added up."""
    start, before = time.monotonic(), _children_seconds()
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen([sys.executable, "-m", "selfaug", *words], stdout=file, stderr=file, pass_fds=[lock])
        try:
            return process.wait(timeout=max(session.deadline - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            process.terminate()
            return process.wait(timeout=GRACE_SECONDS)
        except BaseException:
            process.terminate()
            process.wait(timeout=GRACE_SECONDS)
            raise
        finally:
            spent = _read(folder / "seconds.json")
            for name, seconds in (("wall", time.monotonic() - start), ("processor", _children_seconds() - before)):
                spent[name] = round(spent.get(name, 0.0) + seconds, 1)
            if folder.is_dir():
                write_whole(folder / "seconds.json", json.dumps(spent))


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def measure(session: Session, setting: Setting, adapter: Path | None) -> tuple[dict[str, Any], float, str]:
    """What the model says of each part, the processor's seconds that took, and a hash of the base's answers."""
    from real_model_measure import kept_values, merged, task_values

    items, hidden, answers = kept(session, setting.documents)
    store = Store(session.work / "measured")
    model: list[Any] = []  # loaded once, when the first part that is missing asks for it

    def loaded() -> Any:
        if not model:
            model.append(merged(session.model, adapter, setting.scale))
        return model[0]

    def validation() -> Any:
        return task_values(loaded(), session.tokenizer, rows_of(session, setting.documents, "validation"))

    def test() -> Any:
        return task_values(loaded(), session.tokenizer, rows_of(session, setting.documents, "test"))

    def kept_part() -> Any:
        return kept_values(loaded(), items, hidden() if adapter is not None else None)

    parts, seconds = {}, 0.0
    for name, part in (("validation", validation), ("test", test), ("kept", kept_part)):
        session.check_time()
        place = f"{setting.name}-{name}", key_of({"key": setting.key, "part": name, "answers": answers})
        found = store.get(*place)
        if found is None:
            start = time.process_time()
            values = part()
            found = {"values": values, "seconds": round(time.process_time() - start, 1)}
            store.put(*place, found)
        parts[name] = found["values"]
        seconds += found["seconds"]
    return parts, round(seconds, 1), answers


def kept(session: Session, documents: int) -> tuple[list[Any], Callable[[], list[Any]], str]:
    """The texts on which the base is to be kept, what gives its hidden states there, and a hash of the texts."""
    from real_model_data import LONGEST_ANSWER, PROMPTS, digest, general_prompts, texts
    from real_model_measure import Item, base_answers, chat_ids, hidden_states, merged
    from safetensors.torch import load_file, save_file

    from selfaug.data.prompts import Renderer
    from selfaug.data.tokens import text_ids

    model: list[Any] = []

    def base() -> Any:
        if not model:
            model.append(merged(session.model, None))
        return model[0]

    with session.alone("base", wait=True):
        store = Store(session.work / "base")
        prompts = general_prompts(session.shared)
        ids = [chat_ids(session.tokenizer, row["prompt"]) for row in prompts]
        said: list[list[int]] = []
        for start in range(0, len(ids), CHUNK):
            session.check_time()
            part = ids[start : start + CHUNK]
            place = f"answers-{start}", key_of({"prompts": part, "longest": LONGEST_ANSWER})
            found = store.get(*place)
            if found is None:
                found = base_answers(base(), session.tokenizer, part, LONGEST_ANSWER)
                store.put(*place, found)
            said += found
        items = [Item(row["group"], *both) for row, *both in zip(prompts, ids, said, strict=True)]
        items += [Item("wikitext", [], each) for each in texts(session.shared, session.tokenizer)]
        renderer = Renderer.for_tokenizer(session.tokenizer)
        for record in rows_of(session, documents, "test")[:PROMPTS]:
            text = renderer.prompt_text(session.tokenizer, record, record.documents)
            items.append(Item("prompt", [], text_ids(session.tokenizer, text)))
        answers = digest([[item.context, item.scored] for item in items])
        path = session.work / "base" / f"hidden-{answers}.safetensors"
        if not path.exists():
            states = {str(n): hidden.clone() for n, (hidden, _) in enumerate(hidden_states(base(), items))}
            save_file(states, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)

    def hidden() -> list[Any]:
        states = load_file(path)
        return [states[str(n)] for n in range(len(items))]

    return items, hidden, answers


def processor() -> str:
    """Name of the processor, and the vector units that decide its speed here."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        name = next((value.strip() for key, value in facts.items() if key.strip() == "model name"), "unknown")
        flags = next((value.split() for key, value in facts.items() if key.strip() == "flags"), [])
        return " ".join([name, *(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags)])
    return "unknown"


def status(results: Store) -> str:
    """What is done and what is next, with the processor's hours that it will take."""
    done = finished(results)
    spent = sum(body["seconds"]["train"] + body["seconds"]["measure"] for body in done.values()) / 3600
    lines = [f"{len(done)} of {len(order())} runs are done; they took {spent:.1f} hours of one core.", ""]
    total = 0.0
    for name, own, left in stages(done):
        ahead = sum(hours(setting, done) for setting in left)
        total += ahead
        lines.append(
            f"{name}: {len(own) - len(left)} of {len(own)} done" + (f", {ahead:.1f} hours to go" if left else "")
        )
    following = [setting for setting in order() if setting not in done][:8]
    lines += ["", *(f"next: {each.name} ({hours(each, done):.1f} hours)" for each in following)]
    return "\n".join([*lines, f"all that is left: {total:.1f} hours of one core"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "status", "show"):
        command = commands.add_parser(name)
        command.add_argument("--results", type=Path, required=True, help="Folder of the finished runs' files.")
        if name == "run":
            command.add_argument("--work", type=Path, required=True, help="Folder for weights, kept until the end.")
            command.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="Folder with the data.")
            command.add_argument("--budget_minutes", type=float, default=float("inf"), help="When to stop.")
        if name == "show":
            command.add_argument("--picture", type=Path, help="SVG to draw.")
    return parser


def main() -> int:
    """Run, or say what is done; the exit code: 3 where a run ended before all was done."""
    args = _parser().parse_args()
    results = Store(args.results.resolve())
    if args.command == "status":
        print(status(results))
        return 0
    if args.command == "show":
        from real_model_shown import draw, tables

        done = finished(results)
        print(tables(done))
        if args.picture:
            draw(done, args.picture)
        return 0
    quieten()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    deadline = time.monotonic() + args.budget_minutes * 60
    session = Session(args.work.resolve(), results, args.shared.resolve(), deadline)
    try:
        complete = work_through(session)
    except Stopped:
        complete = False
    print(status(results))
    return 0 if complete else 3


if __name__ == "__main__":
    sys.exit(main())
