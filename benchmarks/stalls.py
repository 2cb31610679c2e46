"""How often does a step of training make the host wait for the device, by layout and method, and who waits?

Counted on the CPU, on a device that is played (`tests/played_device.py`), in steps of two micro-batches without a log.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.played_device import waits_per_step

SETTINGS: dict[str, dict[str, Any]] = {
    "padding": {},
    "padding, an eighth": {"align_fraction": 0.125},
    "padding-free": {"padding_free": True},
    "packing": {"packing": True, "max_length": 48},
    "slices": {"reference_slice": 4},
    "checkpointing": {"gradient_checkpointing": True},
    "initial": {"reference": "initial"},
    "plain LoRA": {"alpha": 0.0},
    "responses compared": {"method": "asft"},
    "weighted samples": {"method": "flow"},
}


def main() -> None:
    """Print the waits of a step for each layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {}
    for name, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = waits_per_step(Path(folder), **settings)
        ours = sum(count for where, count in found[name].items() if where.startswith("selfaug"))
        print(f"{name}: {sum(found[name].values()):g} a step, of which selfaug {ours:g}")
        for where, count in found[name].items():
            print(f"    {count:4g}  {where}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
