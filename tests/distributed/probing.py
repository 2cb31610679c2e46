"""One rank of a run whose probe goes back. Started by torchrun: `probing.py FOLDER`; writes `FOLDER/rank<r>.json`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# torchrun starts a file, and the tests that it imports are a package of the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from selfaug.reference.adapter import digest
from tests.integration.test_probe import losses, probes, prompts, state, trained


def main(folder: Path) -> None:
    rank = os.environ.get("RANK", "0")
    # Two ranks take two rows a step between them, as one rank does alone.
    settings = {"per_device_train_batch_size": 1, "ddp_backend": "gloo"} if "RANK" in os.environ else {}
    settings |= {"probe_steps": 1, "save_steps": 100, "draws": False}
    file = prompts(folder)
    found = {}
    for name, own in (
        ("unprobed", {"probe_steps": None}),
        ("watched", {"probe": file}),
        ("back", {"probe": file, "probe_limit": 0.0016, "probe_action": "restore"}),
    ):
        trainer = trained(folder / name, **{**settings, **own})
        found[name] = {
            "probes": probes(trainer),
            "losses": losses(trainer),
            "outcome": trainer.probe_outcome,
            "weights": digest(dict(trainer.model.named_parameters())),
            "drawn": state(trainer)["torch"].tolist(),
        }
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
