#!/usr/bin/env bash
# Make an environment of axolotl 0.19.0 with its own pins, and selfaug's core in it, for runs on CPUs.
# Usage: hosts/axolotl/environment.sh FOLDER    (needs uv; with UV_TORCH_BACKEND=cpu, torch without CUDA)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?"usage: $0 FOLDER"}
uv venv --python 3.11 "$folder"
uv pip install --python "$folder/bin/python" --overrides "$here/leave-out.txt" \
    "torch==2.13.*" axolotl==0.19.0 -e "$here/../.." pytest pytest-timeout
