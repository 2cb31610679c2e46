#!/usr/bin/env bash
# Make an environment of LLaMA-Factory 0.9.5 with its own pins, and selfaug's core in it, for runs on CPUs.
# Usage: hosts/llamafactory/environment.sh FOLDER    (needs uv; with UV_TORCH_BACKEND=cpu, torch without CUDA)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?"usage: $0 FOLDER"}
uv venv --python 3.11 "$folder"
uv pip install --python "$folder/bin/python" --overrides "$here/leave-out.txt" \
    "torch==2.13.*" llamafactory==0.9.5 -e "$here/../.."
# LLaMA-Factory imports torchaudio, whose compiled part asks for CUDA's libraries; its Python part does not.
if ! "$folder/bin/python" -c "import torchaudio" 2>/dev/null; then
    rm -f "$folder"/lib/python*/site-packages/torchaudio/lib/_torchaudio.so
    "$folder/bin/python" -c "import torchaudio"
fi
