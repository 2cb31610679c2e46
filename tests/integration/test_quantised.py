"""Is the reference of a quantised run its quantised base, in 4 and 8 bits, and does a merge say what it changes?

With bitsandbytes alone, which works on a CPU: `pip install bitsandbytes`, then `bin/test -m nightly`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from selfaug.model.checks import probe_tokens
from selfaug.reference.adapter import BaseReference
from selfaug.reference.checks import check_reference
from tests.integration.test_merge import merge, run_of, saved
from tests.models import save_tiny, tiny

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.nightly

KINDS = {"4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "8 bits": {"load_in_8bit": True}}


def quantised(folder: Path, kind: str, dtype: torch.dtype, **lora: Any) -> Any:
    settings = dict(KINDS[kind])
    if "load_in_4bit" in settings:
        settings["bnb_4bit_compute_dtype"] = dtype
    base = AutoModelForCausalLM.from_pretrained(
        save_tiny(folder), dtype=dtype, quantization_config=BitsAndBytesConfig(**settings)
    )
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
    return get_peft_model(base, config).get_base_model().eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "use_dora"), [("4 bits", False), ("4 bits", True), ("8 bits", False)])
def test_a_fresh_adapter_is_its_quantised_base(kind: str, dtype: torch.dtype, use_dora: bool, tmp_path: Path) -> None:
    model = quantised(tmp_path, kind, dtype, use_dora=use_dora)
    weight = model.model.layers[0].self_attn.q_proj.get_base_layer().weight
    assert weight.dtype in (torch.uint8, torch.int8)
    with torch.no_grad(), BaseReference().serving(model) as base:
        difference = base(input_ids=probe_tokens(model)).logits - tiny("llama").float()(probe_tokens(model)).logits
    assert float(difference.abs().max()) > 0.01  # the unquantised base is another model
    check_reference(model, BaseReference())


def test_a_merge_says_what_the_unquantised_base_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model")
    run = run_of(tmp_path, model)
    config = yaml.safe_load(run.config.read_text())
    run.config.write_text(yaml.safe_dump(config | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}))
    assert merge(run, tmp_path / "out", "--prompts", "4") == 0
    said = capsys.readouterr().err
    assert "on the unquantised base" in said
    assert "the bases themselves are" in said
