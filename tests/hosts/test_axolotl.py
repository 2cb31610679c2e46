"""Tests of the axolotl plugin, through axolotl's own launcher in an environment of its own.

Run with ``SELFAUG_AXOLOTL=FOLDER``, an environment that `hosts/axolotl/environment.sh` made:
``SELFAUG_AXOLOTL=FOLDER bin/test -m nightly tests/hosts/test_axolotl.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.models import PAD, lora_config, save_tiny, tiny, with_lora
from tests.oracles import planted
from tests.oracles.planted import Step
from tests.oracles.sequences import MULTI_TURN, SINGLE_TURN, sequences
from tests.oracles.step import relative_distance

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ.get("SELFAUG_AXOLOTL")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(ENVIRONMENT is None, reason="SELFAUG_AXOLOTL names no environment"),
]
TOLERANCE = 1e-5  # axolotl trains in float32
# One more ends in a user turn, so that a packed neighbour follows a prompt token.
CHOSEN = sequences((*SINGLE_TURN, *MULTI_TURN, (8, 3, 4)))
ROW = 64


@dataclass
class Launched:
    """What a launch left behind."""

    done: subprocess.CompletedProcess[str]
    gradient: dict[str, torch.Tensor]
    batches: list[dict[str, torch.Tensor]]

    @property
    def said(self) -> str:
        return self.done.stdout + self.done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("axolotl")
    save_tiny(made / "model")
    rows = [{"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)} for ids, labels in CHOSEN]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return made


def configuration(folder: Path, output: Path, **changed: Any) -> dict[str, Any]:
    lora = lora_config("llama")
    return {
        "base_model": str(folder / "model"),
        "datasets": [{"path": str(folder / "rows.jsonl"), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(output / "prepared"),
        "output_dir": str(output / "out"),
        "plugins": ["selfaug.plugins.axolotl.Plugin", "tests.hosts.axolotl_recorder.Recorder"],
        "selfaug_alpha": 2.0,
        "adapter": "lora", "lora_r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": 0.0,
        "lora_target_linear": True,
        "sequence_len": ROW, "max_steps": 1, "num_epochs": 1, "learning_rate": 1e-4, "max_grad_norm": 1e9,
        "optimizer": "adamw_torch", "bf16": False, "fp16": False, "tf32": False, "save_strategy": "no",
        "val_set_size": 0, "logging_steps": 1, "gradient_checkpointing": False,
        **changed,
    }  # fmt: skip


def launch(folder: Path, output: Path, **changed: Any) -> Launched:
    output.mkdir(exist_ok=True)
    file, record = output / "run.yaml", output / "record.pt"
    file.write_text(yaml.safe_dump(configuration(folder, output, **changed)), encoding="utf-8")
    variables = {
        **os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}", "SELFAUG_RECORD": str(record), "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    axolotl = [f"{ENVIRONMENT}/bin/axolotl", "train", str(file), "--launcher", "python"]
    done = subprocess.run(axolotl, capture_output=True, text=True, env=variables, cwd=output)
    found = torch.load(record, weights_only=True) if record.is_file() else {"gradient": {}, "batches": []}
    return Launched(done, found["gradient"], found["batches"])


PADDED: dict[str, Any] = {"sample_packing": False}
PACKED: dict[str, Any] = {
    "sample_packing": True, "attn_implementation": "sdpa", "pad_to_sequence_len": True, "sample_packing_bin_size": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {**PADDED, "micro_batch_size": 11, "gradient_accumulation_steps": 1},
        {**PADDED, "micro_batch_size": 3, "gradient_accumulation_steps": 4},
        {**PACKED, "micro_batch_size": 4, "gradient_accumulation_steps": 1},
        {**PACKED, "micro_batch_size": 1, "gradient_accumulation_steps": 4},
    ],
    ids=["padding", "padding, accumulated", "packing", "packing, accumulated"],
)
def test_a_step_through_axolotl_equals_the_oracle(changed: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    ran = launch(folder, tmp_path, **changed)
    assert ran.done.returncode == 0, ran.said[-4000:]
    assert len(ran.batches) == changed["gradient_accumulation_steps"]
    rows = [ids for batch in ran.batches for ids in batch["input_ids"].tolist()]
    assert sum(token != PAD for ids in rows for token in ids) == sum(len(ids) for ids, _ in CHOSEN), "all in one step"
    assert any(ids[-2:] == [PAD, PAD] for ids in rows), "something is padded"
    if changed["sample_packing"]:
        positions = torch.cat([b["position_ids"] for b in ran.batches])
        assert all("attention_mask" not in batch for batch in ran.batches), "nothing but positions tells padding"
        assert bool(((positions == 0).sum(dim=1) > 2).any()), "a row holds several documents and padding"
        gaps = [(row, ids.index(PAD)) for row, ids in enumerate(rows) if ids[-2:] == [PAD, PAD]]
        assert any(positions[row, gap : gap + 2].tolist() == [0, 1] for row, gap in gaps), "as if one more document"
    step = Step(lambda: tiny("llama"), with_lora(tiny("llama")), CHOSEN)
    _, gradient = step.gradient()
    assert relative_distance(ran.gradient, gradient) < TOLERANCE
    mistakes = {
        "padding aligned": planted.padding_aligned(step),
        "neighbours aligned": planted.neighbours_aligned(step),
        "adapter on in the reference pass": planted.adapter_in_reference(step),
        "divided by the accumulation again": {name: g / 4 for name, g in gradient.items()},
    }
    for name, wrong in mistakes.items():
        assert relative_distance(ran.gradient, wrong) > 100 * TOLERANCE, name


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"selfaug_alfa": 1.0}, "selfaug_alfa is not known. Did you mean 'selfaug_alpha'?"),
        ({"train_on_inputs": True}, "no token is left to align"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    changed: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    ran = launch(folder, tmp_path, **PADDED, micro_batch_size=2, **changed)
    assert ran.done.returncode != 0
    assert said in ran.said
    assert not ran.batches


def test_rows_whose_documents_see_each_other_are_refused(folder: Path, tmp_path: Path) -> None:
    # With the mask that axolotl otherwise drops, transformers takes a row for one document.
    plugins = ["selfaug.plugins.axolotl.Plugin", "tests.hosts.axolotl_recorder.KeepMask"]
    ran = launch(folder, tmp_path, **PACKED, micro_batch_size=4, plugins=plugins)
    assert ran.done.returncode != 0
    assert "documents in one row of LlamaForCausalLM see each other" in ran.said
