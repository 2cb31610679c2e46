"""`selfaug merge`: fold a run's adapter into its base, and make sure that the two compute the same."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.outputs import check_writable
from selfaug.data.prompt_files import SETTINGS
from selfaug.errors import ConfigError
from selfaug.terminal import emit, say

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TOLERANCE", "add_parser", "logits_apart", "run"]

DTYPES = ("auto", "float32", "bfloat16", "float16")

TOLERANCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
"""Largest difference of logits allowed, in their standard deviations, by the number format of the merged weights.

Folding rounds every weight once more. The relative step of the formats is 6e-8, 5e-4 and 4e-3; what dozens of layers
make of it stays below these, while a wrong scale or a missing layer moves logits by a deviation and more.
"""

_PROBE = (
    "The quick brown fox jumps over the lazy dog. Question: What is the capital of France?\nAnswer: 42, {x: [1, 2]}"
)


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("merge", help="fold a run's adapter into its base model", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the --output_dir of a finished `selfaug train`")
    parser.add_argument("--output_dir", "--output-dir", required=True, metavar="OUT", help="folder of the merged model")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="number format of the merged weights; auto is the base's own"
    )
    parser.add_argument(
        "--overwrite_output_dir", "--overwrite-output-dir", action="store_true", help="replace the merged model in OUT"
    )


def run(args: argparse.Namespace) -> int:
    """Merge, check, save; the exit code. The folder appears whole or not at all."""
    from selfaug.cli.inputs import check_model
    from selfaug.run_folder import RunFolder

    folder = RunFolder.open(args.run)
    if not folder.adapter.is_dir():
        raise ConfigError(
            f"the run in {folder.path} trained the whole model, so it has no adapter to fold",
            f"use {folder.model} as it is.",
        )
    out = Path(args.output_dir).expanduser()
    _check_output(out, folder.path, args.overwrite_output_dir)
    settings = json.loads((folder.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base = str(settings["base_model_name_or_path"])
    revision = settings.get("revision") or "main"
    trust = bool(folder.read_config().get("trust_remote_code"))
    facts = check_model(base, revision=revision, trust_remote_code=trust)
    if facts.quantization is not None:
        raise ConfigError(
            f"the base model {base} is quantised ({facts.quantization}): an adapter cannot be folded into its weights "
            "without rounding the adapter away",
            "merge into the unquantised model, or serve the adapter as it is.",
        )
    if folder.read_config().get("load_in_4bit") or folder.read_config().get("load_in_8bit"):
        say("The adapter was trained over quantised weights; it is folded into the unquantised ones.")
    if facts.folder is not None:
        _check_space(out, facts.folder, args.dtype)
    say(f"loading the model {base} ...")
    merged, tokenizer = _merge(base, revision, trust, folder.adapter, args.dtype)
    _save(merged, tokenizer, folder.adapter, out)
    emit(str(out))
    return 0


def _check_output(out: Path, run: Path, overwrite: bool) -> None:
    check_writable(out)
    inside = run.resolve()
    if out.resolve() == inside or inside.is_relative_to(out.resolve()):
        raise ConfigError(f"output_dir {out} holds the run itself", "give a folder outside the run.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"output_dir {out} is not empty", "give another folder, or pass --overwrite_output_dir to replace it."
        )
    if not all((out / name).is_file() for name in ("config.json", SETTINGS)):
        raise ConfigError(
            f"output_dir {out} holds something else than a merged model, which would be lost",
            "give another folder, or remove what is in it yourself.",
        )


def _check_space(out: Path, base: Path, dtype: str) -> None:
    from selfaug.provenance import weight_files

    parent = next(path for path in (out.resolve(), *out.resolve().parents) if path.exists())
    size = sum(path.stat().st_size for path in weight_files(base))
    # Two bytes a weight may become four; never mind the few bytes that a smaller format saves.
    needed = size * (2 if dtype == "float32" else 1) + 2**24
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ConfigError(
            f"the merged model needs about {needed / 2**30:.1f} GiB, and {parent} has {free / 2**30:.1f} GiB free",
            "free some space, or give a folder on another disk.",
        )


def _merge(
    base: str, revision: str, trust: bool, adapter: Path, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from selfaug.cli.encoding import load_tokenizer

    tokenizer = load_tokenizer(adapter)
    model = AutoModelForCausalLM.from_pretrained(base, revision=revision, trust_remote_code=trust, dtype=dtype)
    tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    ids = torch.tensor([tokenizer(_PROBE)["input_ids"]])
    with torch.no_grad():
        wanted = tuned(input_ids=ids, use_cache=False).logits
        merged = tuned.merge_and_unload(safe_merge=True)
        got = merged(input_ids=ids, use_cache=False).logits
    name = str(merged.dtype).removeprefix("torch.")
    apart = logits_apart(wanted, got)
    if not apart <= TOLERANCE.get(name, TOLERANCE["bfloat16"]):
        raise ConfigError(
            f"the merged model's logits are {apart:.2g} standard deviations from the adapter's, more than rounding to "
            f"{name} explains: nothing was saved",
            "try --dtype float32; if that fails too, the adapter's kind cannot be folded: serve it as it is.",
        )
    say(f"merged in {name}; the logits are at most {apart:.2g} standard deviations from the adapter's")
    return merged, tokenizer


def logits_apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Max |one - other| / std(one), in float64; ``nan`` if either is not finite."""
    first, second = one.double(), other.double()
    return float((first - second).abs().max() / first.std())


def _save(merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter: Path, out: Path) -> None:
    from selfaug.cli.outputs import open_to_others
    from selfaug.data.prompts import Renderer

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        merged.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        Renderer.load(adapter).save(partial)
        open_to_others(partial)
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
