"""Fine-tune language models on RAG data without losing what they could already do."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfaug.attachment import attach as attach
    from selfaug.common.errors import UserError as UserError
    from selfaug.data.prompts import Renderer as Renderer
    from selfaug.data.prompts import render as render
    from selfaug.data.record import Document as Document
    from selfaug.data.record import Record as Record
    from selfaug.objective.functional import prompt_kl as prompt_kl
    from selfaug.training.config import SelfAugConfig as SelfAugConfig
    from selfaug.training.trainer import SelfAugTrainer as SelfAugTrainer

__version__ = "0.1.0.dev0"

# Loaded on first use: `selfaug --help` must not pay for torch and transformers.
_PUBLIC = {
    "Document": "selfaug.data.record",
    "Record": "selfaug.data.record",
    "Renderer": "selfaug.data.prompts",
    "SelfAugConfig": "selfaug.training.config",
    "SelfAugTrainer": "selfaug.training.trainer",
    "attach": "selfaug.attachment",
    "prompt_kl": "selfaug.objective.functional",
    "UserError": "selfaug.common.errors",
    "render": "selfaug.data.prompts",
}

__all__ = [
    "Document", "Record", "Renderer", "SelfAugConfig", "SelfAugTrainer", "UserError", "__version__", "attach",
    "prompt_kl", "render",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "selfaug").partition(".")[0] == "selfaug":
            raise
        raise ImportError(f"selfaug.{name} needs {error.name}: pip install 'selfaug[train]'") from error
