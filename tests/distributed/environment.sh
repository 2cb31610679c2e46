#!/bin/bash
# Makes an environment with DeepSpeed and bitsandbytes for the nightly tests of sharding, on top of the checkout's .venv.
# environment.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
.venv/bin/python -m venv "$folder"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > "$site/checkout.pth"
# DeepSpeed's setup looks for torch, which comes from .venv; --no-deps keeps the CUDA build of torch out.
"$folder/bin/python" -m pip install --no-build-isolation --no-deps \
    deepspeed==0.19.8 bitsandbytes==0.50.2 hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 py-cpuinfo==9.0.0 einops==0.8.2 \
    pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0 typing-inspection==0.4.5
# Compiled once here: two ranks that both begin to compile it wait for one lock.
DS_ACCELERATOR=cpu PATH="$PWD/$folder/bin:$PATH" "$folder/bin/python" -c \
    'from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load()'
