"""How far is a quantised base from itself and from the full one, and how far does rounding take a fresh adapter?

    python benchmarks/quantised.py --model ../shared/models/stories260k      # needs bitsandbytes; a CPU is enough

KL in nats a token: of the base on cut rows from the base on whole rows (what a fresh adapter shows as alignment), of
the quantised base from the full one, and of a fresh LoRA or DoRA from its base on 8 tokens.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from selfaug.model.checks import probe_tokens
from selfaug.reference.adapter import BaseReference

FORMATS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "8 bits": {"load_in_8bit": True},
    "8 bits, threshold 0": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
}
ROWS, WHOLE, CUT, TOKENS = 4, 64, 48, 500


def load(model: str, name: str, dtype: torch.dtype) -> Any:
    """The model in one format."""
    settings = FORMATS[name]
    if settings is not None and "load_in_4bit" in settings:
        settings = {**settings, "bnb_4bit_compute_dtype": dtype}
    quantisation = None if settings is None else BitsAndBytesConfig(**settings)
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype, quantization_config=quantisation).eval()


@torch.no_grad()
def log_p(model: Any, ids: Tensor) -> Tensor:
    """Log probabilities of all positions, in float64."""
    return model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)  # type: ignore[no-any-return]


def kl(one: Tensor, other: Tensor) -> float:
    """Mean KL(one || other) over positions."""
    return float((one.exp() * (one - other)).sum(-1).mean())


def fresh(model: Any, **lora: Any) -> str:
    """KL of a fresh adapter from its base; the name of the error where PEFT cannot make or run it."""
    try:
        config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", **lora)
        adapted = get_peft_model(model, config).get_base_model().eval()
        ids = probe_tokens(adapted)
        tuned = log_p(adapted, ids)
        with BaseReference().serving(adapted) as base:
            return f"{kl(log_p(base, ids), tuned):.2g}"
    except AttributeError as error:
        return type(error).__name__


def main() -> None:
    """Print a row of figures for each format of weights and computation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print("weights, computed in: base on cut rows; quantised from full; largest difference; fresh LoRA; fresh DoRA")
    for name in FORMATS:
        for dtype in (torch.float32, torch.bfloat16):
            base = load(options.model, name, dtype)
            ids = torch.randint(3, TOKENS, (ROWS, WHOLE), generator=torch.Generator().manual_seed(1))
            whole = log_p(base, ids)
            full = load(options.model, "full", torch.float32)
            difference = base(input_ids=ids).logits.float() - full(input_ids=ids).logits
            figures = [
                f"{kl(whole[:, :CUT], log_p(base, ids[:, :CUT])):.2g}",
                f"{kl(log_p(full, ids), whole):.2g}",
                f"{float(difference.abs().max()):.2g}",
                fresh(load(options.model, name, dtype)),
                fresh(load(options.model, name, dtype), use_dora=True),
            ]
            print(f"{name}, {str(dtype).removeprefix('torch.')}: {'; '.join(figures)}", flush=True)


if __name__ == "__main__":
    main()
