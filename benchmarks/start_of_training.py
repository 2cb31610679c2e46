"""What the start of `selfaug train` costs: processor time and peak memory of each of its processes.

Writes made-up rows, trains one step in several processes on the CPU, twice: with an empty cache of `datasets`, and once
more. The model is the lab's small one, so that the rows are what costs. Processor time is that of the whole tree of
processes; memory is each process's own (anonymous) and the most that was resident, mapped files included.

    python benchmarks/start_of_training.py --rows 100000 --json start.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

ROLES = ("launching process", "accelerate launch", "rank 0", "rank 1", "workers")


def write_rows(path: Path, count: int, length: int, seed: int = 0) -> None:
    """Records of two documents of ``length`` made-up words; of 20, some 255 tokens under the lab's chat template."""
    rng = random.Random(seed)
    letters = ("bcdfglmnprst", "aeiou")
    vocabulary = ["".join(map(rng.choice, letters * rng.randint(1, 3))) for _ in range(2000)]

    def words(number: int) -> str:
        return " ".join(rng.choices(vocabulary, k=number)).capitalize()

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            documents = [{"title": words(2), "text": f"{words(length)}."} for _ in range(2)]
            answer = documents[0]["text"].split()[-1]
            row = {"id": f"r{number}", "question": f"{words(8)}?", "documents": documents, "answer": answer}
            file.write(json.dumps(row) + "\n")


def measured(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command; its wall and processor seconds, and by role the processes' peak memory and processor seconds."""
    begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    seen: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryFile("w+") as talk:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=talk)
        root = psutil.Process(child.pid)
        while child.poll() is None:
            for process in [root, *_children(root)]:
                _note(process, child.pid, seen)
            time.sleep(1.0)
        if child.returncode:
            talk.seek(0)
            raise SystemExit(talk.read())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    roles: dict[str, dict[str, float]] = {}
    for found in seen.values():
        role = roles.setdefault(found["role"], {"processes": 0, "cpu_s": 0.0, "own_mb": 0.0, "resident_mb": 0.0})
        role["processes"] += 1
        role["cpu_s"] += found["cpu_s"]
        for name in ("own_mb", "resident_mb"):
            role[name] = max(role[name], found[name])
    return {"wall_s": time.perf_counter() - begun, "cpu_s": total, "roles": roles}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=True)
    except psutil.Error:
        return []
    return children


def _note(process: psutil.Process, root: int, seen: dict[int, dict[str, Any]]) -> None:
    """Keep the largest values that a process has shown so far."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        times = process.cpu_times()
        if process.pid not in seen or seen[process.pid]["role"] == "accelerate launch":
            seen.setdefault(process.pid, {"cpu_s": 0.0, "own_mb": 0.0, "resident_mb": 0.0})["role"] = _role(
                process, root
            )
    except (psutil.Error, OSError, ValueError):
        return
    sizes = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith(("Vm", "Rss"))}
    found = seen[process.pid]
    found["cpu_s"] = max(found["cpu_s"], times.user + times.system)
    found["own_mb"] = max(found["own_mb"], int(sizes.get("RssAnon", 0)) / 1024)
    found["resident_mb"] = max(found["resident_mb"], int(sizes.get("VmHWM", 0)) / 1024)


def _role(process: psutil.Process, root: int) -> str:
    rank = process.environ().get("RANK")
    if process.pid == root:
        return "launching process"
    if rank is None:
        return "accelerate launch"
    return "workers" if process.parent().environ().get("RANK") == rank else f"rank {rank}"


def main() -> None:
    """Measure the first and the second start, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=20, help="words of a document, of which a row has two")
    parser.add_argument("--data", type=Path, help="a file with so many rows, in the place of made-up ones")
    parser.add_argument("--model", default="lab:small")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--starts", type=int, default=2, help="starts with one cache, the first of them without")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("options", nargs="*", help="more words for `selfaug train`, behind --")
    args = parser.parse_args()
    results = {"model": Path(args.model).name, "rows": args.rows, "processes": args.processes, "starts": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = args.data or folder / "rows.jsonl"
        if args.data is None:
            write_rows(data, args.rows, args.words)
        environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1",
                       "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}  # fmt: skip
        for start in range(args.starts):
            command = [
                *(sys.executable, "-m", "selfaug", "train", "--model_name_or_path", args.model),
                *("--dataset_name", str(data), "--output_dir", str(folder / f"run{start}")),
                *("--max_steps", "1", "--per_device_train_batch_size", "1", "--use_cpu", "true"),
                *("--report_to", "none", "--num_processes", str(args.processes), *args.options),
            ]
            found = measured(command, environment)
            results["starts"].append(found)
            print(f"start {start + 1}: {args.rows:,} rows, {found['wall_s']:.0f} s, processor {found['cpu_s']:.1f} s "
                  f"({1000 * found['cpu_s'] / args.rows:.2f} ms a row)")  # fmt: skip
            print(f"{'':20}{'processor s':>12}{'own MB':>10}{'resident MB':>13}")
            for role in sorted(found["roles"]):
                one = found["roles"][role]
                print(f"{role:20}{one['cpu_s']:12.1f}{one['own_mb']:10.0f}{one['resident_mb']:13.0f}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
