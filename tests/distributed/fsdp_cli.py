"""`selfaug` in a process that accelerate started, where FSDP2 shards on CPUs too: `fsdp_cli.py train ...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from selfaug.cli.main import main
from tests.distributed.fsdp_on_cpu import shard_on_cpu

if __name__ == "__main__":
    shard_on_cpu()
    sys.exit(main(sys.argv[1:]))
