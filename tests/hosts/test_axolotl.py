"""Tests of the axolotl plugin, with axolotl's own entry point and launcher in an environment of its own.

Run with ``SELFAUG_AXOLOTL=FOLDER``, an environment that `hosts/axolotl/environment.sh` made:
``SELFAUG_AXOLOTL=FOLDER bin/test -m nightly tests/hosts/test_axolotl.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.hosts.steps import (
    CHOSEN,
    MISTAKES,
    TOLERANCE,
    Case,
    distance,
    documents_of,
    environment,
    read_record,
    require_step,
    require_whole,
    run_inside,
)
from tests.models import PAD, lora_config, save_tiny

ENVIRONMENT = os.environ.get("SELFAUG_AXOLOTL")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(ENVIRONMENT is None, reason="SELFAUG_AXOLOTL names no environment"),
]
PLUGIN = "selfaug.plugins.axolotl.Plugin"
PADDED: dict[str, Any] = {"micro_batch_size": 10, "gradient_accumulation_steps": 1}
# Three rows hold all documents; each is padded to 64 tokens.
PACKED: dict[str, Any] = {"sample_packing": True, "sequence_len": 48, "pad_to_sequence_len": True}
TOGETHER = {**PACKED, "attn_implementation": "sdpa", "micro_batch_size": 3, "gradient_accumulation_steps": 1}
LAYOUTS: dict[str, dict[str, Any]] = {
    "padding": PADDED,
    "padding, accumulated": {"micro_batch_size": 3, "gradient_accumulation_steps": 4},
    "packing": TOGETHER,
    "packing, eager attention": {**TOGETHER, "attn_implementation": "eager"},
    "packing, accumulated": {**TOGETHER, "micro_batch_size": 1, "gradient_accumulation_steps": 3},
}
PLANTED = {
    "divided again": "padding, accumulated",
    "adapter on in the reference pass": "packing, accumulated",
    "a row taken for one document": "packing",
    "padding taken for a document": "padding",
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown setting": ({"selfaug_alfa": 2.0}, "selfaug_alfa is not known. Did you mean 'selfaug_alpha'?"),
    "no number": ({"selfaug_alpha": "2e-1"}, "selfaug_alpha='2e-1' is of type str, where float is needed"),
    "no weight": ({"selfaug_alpha": -1.0}, "is not a weight"),
    "trained prompts": ({"train_on_inputs": True}, "no token is left to align"),
    "another loss": ({"rl": "dpo"}, "its loss is not that of supervised fine-tuning"),
    "merged adapters": ({"relora": True}, "with the adapter off the model is not the base"),
    "split rows": ({"context_parallel_size": 2}, "splits what the alignment compares"),
    "no adapter": ({"adapter": None}, "the base is gone after the first step"),
    "other base weights": ({"peft_init_lora_weights": "pissa"}, "init_lora_weights"),
    "trained base weights": (
        {"unfrozen_parameters": [".+lora_.+", ".+embed_tokens.+"]},
        "moves when the trained weights do",
    ),
    # With the mask that axolotl otherwise drops, transformers takes a row for one document.
    "documents that see each other": (
        {**TOGETHER, "plugins": [PLUGIN, "tests.hosts.axolotl_recorder.KeepMask"]},
        "documents in one row of LlamaForCausalLM see each other",
    ),
}


def configuration(folder: Path, output: Path, changed: dict[str, Any]) -> Path:
    lora = lora_config("llama")
    settings = {
        "base_model": str(folder / "model"),
        "datasets": [{"path": str(folder / "rows.jsonl"), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(folder / "prepared"), "output_dir": str(output / "out"), "dataset_num_proc": 1,
        "plugins": [PLUGIN], "selfaug_alpha": 2.0,
        "adapter": "lora", "lora_r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": 0.0,
        "lora_target_linear": True, "lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False,
        "lora_embedding_kernel": False,
        "sequence_len": 64, "max_steps": 1, "num_epochs": 1, "learning_rate": 1e-4,
        "max_grad_norm": 1e9, "optimizer": "adamw_torch", "bf16": False, "fp16": False, "tf32": False,
        "save_strategy": "no", "val_set_size": 0, "logging_steps": 1, "gradient_checkpointing": False, **changed,
    }  # fmt: skip
    output.mkdir()
    file = output / "run.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("axolotl")
    save_tiny(made / "model")
    rows = [{"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)} for ids, labels in CHOSEN]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Case]:
    settings = {
        **LAYOUTS,
        **{mistake: LAYOUTS[layout] for mistake, layout in PLANTED.items()},
        **{name: {**PADDED, **changed} for name, (changed, _) in REFUSED.items()},
    }
    cases = [
        Case(name, [str(configuration(folder, folder / str(number), changed))], name if name in PLANTED else None)
        for number, (name, changed) in enumerate(settings.items())
    ]
    run_inside("axolotl", f"{ENVIRONMENT}/bin/python", cases, folder)
    return {case.name: case for case in cases}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_axolotl_equals_the_oracle(layout: str, ran: dict[str, Case]) -> None:
    case = ran[layout]
    require_whole(case, CHOSEN, [ids for batch in case.batches for ids in documents_of(batch)])
    assert len(case.batches) == LAYOUTS[layout]["gradient_accumulation_steps"]
    if "packing" in layout:
        assert all("attention_mask" not in batch for batch in case.batches), "nothing but positions tells padding"
        ids_BT, positions_BT = (torch.cat([b[name] for b in case.batches]) for name in ("input_ids", "position_ids"))
        assert bool((positions_BT == 0).sum(dim=1).max() > 2), "a row holds several documents and padding"
        assert bool(((ids_BT == PAD) & (positions_BT > 5)).any()), "padding is numbered like one more document"
    else:
        assert any(not batch["attention_mask"].all() for batch in case.batches), "something is padded"
    require_step(case, CHOSEN)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_axolotls_step_is_caught(mistake: str, ran: dict[str, Case]) -> None:
    case = ran[mistake]
    if mistake == "adapter on in the reference pass":  # seen before the first step
        assert "the reference='base' moves when the trained weights do" in case.said
        return
    assert not case.said, case.said
    assert distance(case, CHOSEN) > 100 * TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_in_axolotl_is_refused(name: str, ran: dict[str, Case]) -> None:
    assert ran[name].said.startswith("ConfigError: ")
    assert REFUSED[name][1] in ran[name].said
    assert not ran[name].gradient


def test_a_step_through_axolotls_launcher_equals_the_oracle(folder: Path, tmp_path: Path) -> None:
    changed = {**TOGETHER, "plugins": [PLUGIN, "tests.hosts.axolotl_recorder.Recorder"]}
    file = configuration(folder, tmp_path / "run", changed)
    record = tmp_path / "record.pt"
    axolotl = [f"{ENVIRONMENT}/bin/axolotl", "train", str(file), "--launcher", "python"]
    variables = environment(STEP_RECORD=str(record), AXOLOTL_DO_NOT_TRACK="1")
    done = subprocess.run(axolotl, capture_output=True, text=True, env=variables, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "'alignment': " in done.stdout + done.stderr
    case = Case("launcher", [])
    read_record(case, record)
    require_step(case, CHOSEN)
