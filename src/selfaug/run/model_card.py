"""The model card: the adapter folder's ``README.md``, for readers who have the adapter without its run.

Names of models and files come from users and are escaped, so that none can break the page's table, its code blocks or
its YAML header.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

__all__ = ["escape", "model_card"]

_SETTINGS = (
    "method", "preset", "alpha", "align_target", "align_direction", "align_boundary", "align_fraction", "reference",
    "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora", "load_in_4bit",
    "load_in_8bit", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "num_train_epochs",
    "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "packing", "bf16", "seed",
)  # fmt: skip
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")


def escape(text: object) -> str:
    """Escape a text so that Markdown shows it on one line, whatever characters it holds."""
    line = " ".join(str(text).split())
    return _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))


def model_card(manifest: Mapping[str, Any], config: Mapping[str, Any], *, measured: Sequence[str] = ()) -> str:
    """Return the card of a run, as Markdown with the hub's YAML header.

    Args:
        manifest: Manifest of the run.
        config: Resolved settings of the run.
        measured: Lines of Markdown with measured results; without any the card says that nothing was measured.
    """
    base = str(manifest.get("model", {}).get("name", "unknown"))
    adapter = bool(config.get("use_peft", True))
    header: dict[str, Any] = {"library_name": "peft" if adapter else "transformers"}
    if not base.startswith(("/", ".", "~")):
        # A local path would be an invalid link on the hub.
        header["base_model"] = base
    header["tags"] = ["selfaug", "rag", *(["lora"] if adapter else [])]
    settings = [(name, config[name]) for name in _SETTINGS if config.get(name) is not None]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {escape(_short(base))}, tuned on documents with selfaug",
        _what(config, adapter),
        "## How to load",
        _loading(base, adapter),
        "`selfaug_renderer.json` holds the layout of the prompt in training, and `selfaug_rag_template.jinja` the same "
        "for servers, as a chat template that takes `documents`.",
        "## Data",
        _table(("split", "rows", "files"), _data_rows(manifest.get("data", {}))),
        "## Settings",
        _table(("setting", "value"), [(name, _value(value)) for name, value in settings]),
        "## Measured",
        "\n".join(measured) if measured else "Nothing yet. Run an evaluation before relying on this model.",
        "## Versions",
        _table(
            ("package", "version"), [(name, value) for name, value in manifest.get("versions", {}).items() if value]
        ),
        "## Licence",
        "This adapter has no licence of its own: the licences of the base model and of the training data apply, "
        "whichever asks for more. State them before you pass it on.",
    ]
    return "\n\n".join(parts) + "\n"


def _what(config: Mapping[str, Any], adapter: bool) -> str:
    made = "Adapter" if adapter else "Model"
    aim = "Answers are learnt from retrieved documents"
    if config.get("alpha") or config.get("align_target"):
        aim += " while the next-token distributions over the prompt are held to the base model's"
    return f"{made} trained with the method `{_code(config.get('method', 'selfaug'))}`. {aim}."


def _loading(base: str, adapter: bool) -> str:
    if adapter:
        name = base if base == _short(base) else f"path/to/{_short(base)}"
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"base = AutoModelForCausalLM.from_pretrained({name!r})",
            'model = PeftModel.from_pretrained(base, "this folder")',
            'tokenizer = AutoTokenizer.from_pretrained("this folder")',
        ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("this folder")',
            'tokenizer = AutoTokenizer.from_pretrained("this folder")',
        ]
    # A fence longer than any run of backticks inside cannot be closed by the content.
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}python", *lines, fence])


def _data_rows(data: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    return [
        (split, entry.get("rows", ""), ", ".join(_short(str(file.get("path", ""))) for file in entry.get("files", [])))
        for split, entry in data.items()
        if isinstance(entry, Mapping)
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head)]
    body = ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + body)


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _short(name: str) -> str:
    # Local folders are private to the machine that trained the adapter.
    return name.rstrip("/").split("/")[-1] if name.startswith(("/", ".", "~")) else name


def _code(text: object) -> str:
    return re.sub(r"[^\w.-]", "", str(text))
