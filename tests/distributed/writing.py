"""One rank of a run whose base writes before training, and of one whose adapter starts as a part of the weights.

Started by torchrun: `writing.py FOLDER`. Each rank writes `FOLDER/rank<r>.json`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

# torchrun starts a file, and the tests that it imports are a package of the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from selfaug.model.libraries import lora_pairs
from selfaug.reference.adapter import digest
from tests.integration.generating_run import make_trainer


def main(folder: Path) -> None:
    rank = os.environ.get("RANK", "0")
    backend = {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
    options = {"magpie_ratio": 0.25, "rewrite_share": 0.5}
    writing = make_trainer(folder / "writing", method="sdft+magpie", method_options=options, **backend)
    writing.train()
    weighing = make_trainer(folder / "fisher", method="ewc", **backend)
    weighing.train()
    fisher = {str(i): pair.layer.selfaug_fisher for i, pair in enumerate(lora_pairs(weighing.model))}
    start = make_trainer(folder / "start", method="corda", dtype=torch.float32, **backend)
    reduced = digest({str(i): pair.layer.get_base_layer().weight for i, pair in enumerate(lora_pairs(start.model))})
    start.train()
    found = {
        "rows": list(writing.train_dataset["input_ids"]),
        "trained": {name: p.double().sum().item() for name, p in writing.model.named_parameters() if p.requires_grad},
        "fisher": digest(fisher),
        "reduced": reduced,
        "finished": digest(dict(start.model.named_parameters())),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
