#!/usr/bin/env bash
# Make an environment of axolotl 0.19.0 on Python 3.11 with its own pins, and selfaug's core in it, for runs on CPUs.
# Usage: hosts/axolotl/environment.sh FOLDER [VERSION PYTHON]    (needs uv; with UV_TORCH_BACKEND=cpu, torch without
# CUDA; `0.21.0 3.12` for that version)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?"usage: $0 FOLDER [VERSION PYTHON]"} version=${2:-0.19.0} python=${3:-3.11}
uv venv --python "$python" "$folder"
uv pip install --python "$folder/bin/python" --overrides "$here/leave-out.txt" \
    "torch==2.13.*" "axolotl==$version" -e "$here/../.." pytest pytest-timeout
