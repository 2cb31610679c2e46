"""What does `selfaug evaluate` cost against a run with the base alone plus a run with the tuned model alone?

    python benchmarks/evaluate_cost.py MODEL SQUAD.json

MODEL is a small model with tokenizer (stories260k); SQUAD.json a file of questions. Each measurement is a process of
its own. Time: 200 questions, from loading to answers; processor seconds, because the wall clock of a shared machine
measures its other users, and wall seconds beside. Memory: a random model of Llama's shape with 77 million parameters
and the same tokenizer, 8 questions; peak of the resident set above what it was after the imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

QUESTIONS, NEW_TOKENS, BATCH = 200, 16, 8
MEMORY_QUESTIONS = 8


def measure(kind: str, run: Path, data: Path, questions: int) -> dict[str, float]:
    """Seconds and bytes of one way: ``evaluate``, ``base`` or ``tuned``; called in a process of its own."""
    import datasets  # noqa: F401 - libraries are no memory of the model's: every way has them all
    import peft
    import torch
    import transformers

    from selfaug.cli.encoding import load_tokenizer
    from selfaug.cli.main import main as command
    from selfaug.data.prompts import Renderer
    from selfaug.evaluation.data import task_data
    from selfaug.evaluation.task import answer, ask
    from selfaug.run.folder import RunFolder

    torch.set_num_threads(1)
    before = _resident()
    wall, cpu = time.perf_counter(), time.process_time()
    if kind == "evaluate":
        words = ["--data", str(data), "--limit", str(questions), "--max_new_tokens", str(NEW_TOKENS), "--fresh"]
        assert command(["evaluate", str(run), *words, "--batch_size", str(BATCH)]) == 0
    else:
        folder = RunFolder.open(run)
        config = folder.read_config()
        tokenizer, renderer = load_tokenizer(folder.adapter), Renderer.load(folder.adapter)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(config["model_name_or_path"])
        if kind == "tuned":
            model = peft.PeftModel.from_pretrained(model, str(folder.adapter)).get_base_model()
        items = task_data([str(data)], config, {}, limit=questions)[0].items
        context = model.config.max_position_embeddings
        asked = ask(items, tokenizer, renderer, max_length=512, context=context, max_new_tokens=NEW_TOKENS).asked
        with torch.no_grad():
            answer(model.eval(), tokenizer, renderer, asked, max_new_tokens=NEW_TOKENS, batch_size=BATCH)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "bytes": peak - before,
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def make_run(path: Path, model: Path) -> None:
    """A finished run of ``model`` with a LoRA adapter of random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from selfaug.data.prompts import Renderer
    from selfaug.run.folder import RunFolder

    run = RunFolder(path)
    run.create({"model_name_or_path": str(model), "max_length": 512})
    torch.manual_seed(0)
    settings = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings).save_pretrained(run.adapter)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(run.adapter)
    Renderer.for_tokenizer(tokenizer).save(run.adapter)


def make_model(path: Path, tokenizer_of: Path) -> None:
    """A random model of Llama's shape with 77 million parameters and the tokenizer of another."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, num_attention_heads=16,
        vocab_size=len(tokenizer), max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def main() -> None:
    """Print a line a way, and the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3, help="the smallest time and the median peak count")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "RUN", "QUESTIONS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, run, questions = args.child
        sys.stderr.write("\n" + json.dumps(measure(kind, Path(run), args.data, int(questions))) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_run(work / "run", args.model)
        make_model(work / "model", args.model)
        make_run(work / "large", work / "model")

        def ask(kind: str, run: Path, questions: int) -> dict[str, float]:
            words = [sys.executable, __file__, str(args.model), str(args.data)]
            child = subprocess.run(
                [*words, "--child", kind, str(run), str(questions)], capture_output=True, text=True, check=True
            )
            found: dict[str, float] = json.loads(child.stderr.strip().splitlines()[-1])
            return found

        kinds = ("evaluate", "base", "tuned")
        # Interleaved, so that a slow minute of the machine falls on all of them.
        rounds = [{kind: ask(kind, work / "run", QUESTIONS) for kind in kinds} for _ in range(args.repeats)]
        best = {kind: {name: min(r[kind][name] for r in rounds) for name in ("cpu", "wall")} for kind in kinds}
        for kind in kinds:
            print(f"{QUESTIONS} questions, {kind:8}  {best[kind]['cpu']:7.1f} s cpu  {best[kind]['wall']:7.1f} s wall")
        for name in ("cpu", "wall"):
            ratio = best["evaluate"][name] / (best["base"][name] + best["tuned"][name])
            print(f"evaluate / (base + tuned), {name}: {ratio:.3f}")
        large = [{kind: ask(kind, work / "large", MEMORY_QUESTIONS)["bytes"] for kind in kinds} for _ in rounds]
        peaks = {kind: statistics.median(r[kind] for r in large) for kind in kinds}
        for kind in kinds:
            print(f"{MEMORY_QUESTIONS} questions, {kind:8}  {peaks[kind] / 2**20:7.0f} MiB above imports")
        print(f"evaluate / base, memory: {peaks['evaluate'] / peaks['base']:.3f}")
        print(f"evaluate / tuned, memory: {peaks['evaluate'] / peaks['tuned']:.3f}")


if __name__ == "__main__":
    main()
