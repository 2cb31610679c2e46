"""Tests of the LLaMA-Factory command, in an environment of its own.

Run with ``SELFAUG_LLAMA_FACTORY=FOLDER``, an environment that `hosts/llamafactory/environment.sh` made:
``SELFAUG_LLAMA_FACTORY=FOLDER bin/test -m nightly tests/hosts/test_llama_factory.py``.
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
    ROOT,
    TOLERANCE,
    Case,
    distance,
    documents_of,
    environment,
    messages,
    read_record,
    require_step,
    require_whole,
    run_inside,
)
from tests.models import lora_config, save_tiny

ENVIRONMENT = os.environ.get("SELFAUG_LLAMA_FACTORY")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(ENVIRONMENT is None, reason="SELFAUG_LLAMA_FACTORY names no environment"),
]
PADDED = {"per_device_train_batch_size": 10, "gradient_accumulation_steps": 1}
PACKED = {"neat_packing": True, "cutoff_len": 48}
LAYOUTS: dict[str, dict[str, Any]] = {
    "padding": PADDED,
    "padding, accumulated": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
    "packing": {**PACKED, **PADDED},
    "packing, eager attention": {**PACKED, **PADDED, "flash_attn": "disabled"},
    "packing, accumulated": {**PACKED, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
}
PLANTED = {
    "divided again": "padding, accumulated",
    "adapter on in the reference pass": "packing, accumulated",
    "a row taken for one document": "packing",
    "padding taken for a document": "padding",
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "packing": ({"packing": True}, "lets the documents of a row see each other"),
    "another stage": ({"stage": "pt"}, "its loss is not that of supervised fine-tuning"),
    "trained prompts": ({"train_on_prompt": True}, "no token is left to align"),
    "another loss": ({"use_asft_loss": True}, "use_asft_loss=True cannot work with SelfAug"),
    "accuracy": ({"compute_accuracy": True}, "it needs logits, which never exist in full"),
    "shifted attention": ({"shift_attn": True}, "changes attention in training alone"),
    "loss of experts": ({"moe_aux_loss_coef": 0.1}, "load-balancing loss of experts is not computed"),
    "no adapter": ({"finetuning_type": "full"}, "trains weights of the base"),
    "smoothing": ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is not supported"),
    "rewritten base": ({"pissa_init": True}, "rewrites the base weights"),
    "an unknown setting": ({"selfaug_alfa": 2.0}, "selfaug_alfa is not known. Did you mean 'selfaug_alpha'?"),
    "no number": ({"selfaug_alpha": "two"}, "selfaug_alpha='two' is of type str, where float is needed"),
    "no share": ({"selfaug_align_fraction": 0}, "is not a share"),
    "rows of another length than positions": (
        {"neat_packing": True, "cutoff_len": 45}, "one number a token is needed"
    ),
}  # fmt: skip


def configuration(folder: Path, name: str, changed: dict[str, Any]) -> str:
    lora = lora_config("llama")
    settings = {
        "model_name_or_path": str(folder / "model"), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": 0.0, "lora_target": "all",
        "dataset_dir": str(folder), "dataset": "rows", "template": "empty", "cutoff_len": 128,
        "output_dir": str(folder / f"out {name}"), "max_steps": 1, "learning_rate": 1e-4, "max_grad_norm": 1e9,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "overwrite_cache": True,
        "disable_gradient_checkpointing": True, "selfaug_alpha": 2.0, **changed,
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("factory")
    save_tiny(made / "model")
    rows = [{"messages": messages(ids, labels)} for ids, labels in CHOSEN]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    info = json.loads((ROOT / "hosts" / "llamafactory" / "dataset_info.json").read_text(encoding="utf-8"))
    rows_info = {"rows": {**info["mctest"], "file_name": "rows.jsonl"}}
    (made / "dataset_info.json").write_text(json.dumps(rows_info), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Case]:
    cases = [Case(name, [configuration(folder, name, layout)]) for name, layout in LAYOUTS.items()]
    for mistake, layout in PLANTED.items():
        cases.append(Case(mistake, [configuration(folder, mistake, LAYOUTS[layout])], planted=mistake))
    for name, (changed, _) in REFUSED.items():
        file = configuration(folder, f"refused {name}", {**PADDED, **changed})
        cases.append(Case(f"refused {name}", [file]))
    run_inside("llama_factory", f"{ENVIRONMENT}/bin/python", cases, folder)
    return {case.name: case for case in cases}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_llama_factory_equals_the_oracle(layout: str, ran: dict[str, Case]) -> None:
    case = ran[layout]
    require_whole(case, CHOSEN, [ids for batch in case.batches for ids in documents_of(batch)])
    assert (len(case.batches) > 1) == ("accumulated" in layout)
    masks = [batch["attention_mask"] for batch in case.batches]
    if layout.startswith("packing"):
        assert all(mask.dim() == 4 for mask in masks)
        assert any(int((batch["position_ids"] == 0).sum()) > len(batch["labels"]) for batch in case.batches)
    else:
        assert any(not mask.all() for mask in masks), "something is padded"
    require_step(case, CHOSEN)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_llama_factorys_step_is_caught(mistake: str, ran: dict[str, Case]) -> None:
    case = ran[mistake]
    if mistake == "adapter on in the reference pass":  # seen before the first step
        assert "the reference='base' moves when the trained weights do" in case.said
        return
    assert not case.said, case.said
    assert distance(case, CHOSEN) > 100 * TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_in_llama_factory_is_refused(name: str, ran: dict[str, Case]) -> None:
    case = ran[f"refused {name}"]
    assert "error: " in case.said, "after what else the host says"
    assert "\n\nhint: " in case.said
    assert REFUSED[name][1] in case.said
    assert not case.gradient


def launch(folder: Path, file: str, record: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    # A folder of `sitecustomize.py` makes every Python process record, those of torchrun too.
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text("import tests.hosts.recorder\n", encoding="utf-8")
    made = environment(STEP_RECORD=str(record), **variables)
    path = {"PYTHONPATH": f"{folder / 'site'}:{made['PYTHONPATH']}", "PATH": f"{ENVIRONMENT}/bin:{made['PATH']}"}
    command = ["selfaug-llamafactory", "train", file]
    return subprocess.run(command, capture_output=True, text=True, env={**made, **path}, cwd=folder)


def test_a_step_on_two_ranks_through_the_command_equals_the_oracle(folder: Path, tmp_path: Path) -> None:
    file = configuration(folder, "ranks", {"per_device_train_batch_size": 5, "ddp_backend": "gloo", "use_cpu": True})
    record = tmp_path / "record.pt"
    done = launch(folder, file, record, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    assert done.returncode == 0, done.stderr[-4000:]
    case, other = Case("ranks", []), Case("other rank", [])
    read_record(case, record)
    read_record(other, record.with_suffix(".1"))
    assert len(case.batches) == len(other.batches) == 1
    documents = [ids for each in (case, other) for ids in documents_of(each.batches[0])]
    require_whole(case, CHOSEN, documents)
    require_step(case, CHOSEN)
    assert all(torch.equal(gradient, other.gradient[name]) for name, gradient in case.gradient.items())
