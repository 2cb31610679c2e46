#!/bin/bash
# On each machine: HOST=address-of-the-first-machine ./torchrun.sh
set -euo pipefail
torchrun --nnodes 2 --nproc_per_node 8 \
  --rdzv_id selfaug --rdzv_backend c10d --rdzv_endpoint "$HOST:29500" \
  -m selfaug train --config settings.yaml
