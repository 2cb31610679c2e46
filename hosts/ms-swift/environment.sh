#!/usr/bin/env bash
# Make an environment of ms-swift 4.6.0 with its own pins, and selfaug's core in it, for runs on CPUs.
# Usage: hosts/ms-swift/environment.sh FOLDER    (needs uv; with UV_TORCH_BACKEND=cpu, torch without CUDA)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?"usage: $0 FOLDER"}
uv venv --python 3.11 "$folder"
uv pip install --python "$folder/bin/python" "torch==2.13.*" ms-swift==4.6.0 -e "$here/../.."
