#!/bin/bash
# Makes an environment with the trackers for their nightly tests, on top of the checkout's .venv.
# environment.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
.venv/bin/python -m venv "$folder"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
# The same versions of what .venv has too; what is installed here comes before it.
"$folder/bin/python" -m pip install \
    --constraint <(.venv/bin/python -m pip freeze --exclude-editable | grep -E '^(numpy|pydantic|huggingface)') \
    tensorboard==2.21.0 trackio==0.43.0 wandb==0.31.0 mlflow==3.17.2
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > "$site/checkout.pth"
