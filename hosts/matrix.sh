#!/usr/bin/env bash
# Run the tests of `attach` at the oldest and newest versions of transformers and peft, without trl and datasets.
# Usage: hosts/matrix.sh FOLDER ["TRANSFORMERS PEFT" ...]    (needs uv; UV_TORCH_BACKEND=cpu gives torch without CUDA)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:?"usage: $0 FOLDER"}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
failed=0 pairs=("${@:2}")
[ ${#pairs[@]} -gt 0 ] ||
    pairs=("5.6.0 0.18.0" "5.6.0 newest" "5.16.1 0.18.0" "5.16.1 newest" "newest 0.18.0" "newest newest")
for pair in "${pairs[@]}"; do
    read -r transformers peft <<<"$pair"
    python=$folder/$transformers-$peft/bin/python
    wanted=("torch==2.13.*" "transformers==$transformers" "peft==$peft" safetensors pytest)
    [ -e "$python" ] || { uv venv -q --python 3.11 "$folder/$transformers-$peft" &&
        uv pip install -q --python "$python" "${wanted[@]/==newest/}" -e . ; } || exit 1
    "$python" -c "
import importlib.util as found, peft, transformers
assert not found.find_spec('trl') and not found.find_spec('datasets')
print(f'transformers {transformers.__version__}, peft {peft.__version__}:', end=' ', flush=True)"
    PYTHONPATH=src "$python" -m pytest -q -p no:cacheprovider -o addopts= -o timeout= tests/core/test_attach.py \
        -k "oracle or numbered or see_each_other or resumed or stops_a_run or base_is_kept or alpha_0" | tail -n 1 || failed=1
done
exit $failed
