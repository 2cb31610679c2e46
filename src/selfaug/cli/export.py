"""The export of a finished training: weights, tokenizer, renderer and model card."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.outputs import open_to_others
from selfaug.common.errors import ConfigError
from selfaug.common.terminal import is_main, say
from selfaug.common.weights import weight_files, weights_hash
from selfaug.data.rag_template import RAG_TEMPLATE, save_rag_template
from selfaug.model.base import Base
from selfaug.model.sharding import whole_shape
from selfaug.run.checkpoint import step_of
from selfaug.run.manifest import write_manifest
from selfaug.run.model_card import model_card

if TYPE_CHECKING:
    from selfaug.cli.parsing import Settings
    from selfaug.data.prompts import Renderer
    from selfaug.run.folder import RunFolder

__all__ = ["export", "missing_weights"]

# Pickles of the trainer, which loading an exported model does not need.
_PICKLES = ("training_args.bin",)


def export(
    trainer: Any, renderer: Renderer, folder: RunFolder, settings: Settings, manifest: dict[str, Any], result: Any
) -> Path:
    """Write the finished adapter (or, without PEFT, the model) with tokenizer, renderer and model card.

    The folder appears as a whole or not at all. Every rank must call this, since a sharded model is gathered by all.

    Args:
        trainer: Trainer after training.
        renderer: Renderer to save beside the weights.
        folder: Folder of the run.
        settings: Settings of the run.
        manifest: Manifest of the run; the entry ``finished`` is added.
        result: Result of ``trainer.train``.
    """
    back = trainer.restored_from
    final = folder.adapter if settings.model.use_peft else folder.model
    partial = folder.path / f".{final.name}.partial"
    main = is_main()
    trainer.args.save_on_each_node = False  # of checkpoints; the export is on the first machine alone
    if main:
        shutil.rmtree(partial, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    _require_whole(trainer, partial, folder)
    if main:
        for name in _PICKLES:
            (partial / name).unlink(missing_ok=True)
        renderer.save(partial)
        base = manifest["model"]
        Base(base["name"], base.get("commit"), base["weights"]).write(partial)
        if not save_rag_template(renderer, trainer.processing_class, partial):
            say(f"{RAG_TEMPLATE} was not written: no Jinja text gives the trained prompts. Use selfaug.render.")
        card = model_card(manifest, settings.resolved)
        (partial / "README.md").write_text(card, encoding="utf-8")
        open_to_others(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        manifest["finished"] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "steps": trainer.state.global_step if back is None else step_of(back),
            "weights": weights_hash(weight_files(final), full=True),
            "metrics": result.metrics,
        }
        if trainer.probe_outcome:
            manifest["finished"]["probe_limit_broken"] = trainer.probe_outcome
        write_manifest(folder.manifest, manifest)
        if settings.training.push_to_hub:
            _push(trainer, final, settings)
    trainer.accelerator.wait_for_everyone()
    return final


def missing_weights(folder: Path, trained: int | None) -> str | None:
    """Return what an export lacks, or ``None`` if its weights are whole and can be read.

    Args:
        folder: Folder of the export.
        trained: Number of trained values, all of which it must hold; ``None`` where it is not known.
    """
    from safetensors import SafetensorError, safe_open

    values = 0
    for file in weight_files(folder):
        if file.suffix != ".safetensors":
            return None
        try:
            with safe_open(file, framework="pt") as weights:
                sizes = {name: math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            return f"{file.name} cannot be read ({error})"
        if empty := sorted(name for name, size in sizes.items() if not size):
            return f"{empty[0]} is empty"
        values += sum(sizes.values())
    if not values:
        return "it has no weights"
    return None if trained is None or values >= trained else f"it has {values} of {trained} trained values"


def _require_whole(trainer: Any, partial: Path, folder: RunFolder) -> None:
    from accelerate.utils import broadcast_object_list

    # A single process writes its own weights; how many values a sharded model has in all, its parts say.
    trained = sum(math.prod(whole_shape(p)) for p in trainer.model.parameters() if p.requires_grad)
    lack = missing_weights(partial, trained if trainer.sharded else None) if is_main() else None
    lack = broadcast_object_list([lack])[0]
    if lack is None:
        return
    error = ConfigError(
        f"the finished weights could not be exported: {partial} is not whole ({lack}).",
        f"the checkpoints are kept in {folder.checkpoints}: once the cause is mended, --resume_from_checkpoint exports "
        "the last one without a further step.",
    )
    error.said_elsewhere = not is_main()
    raise error


def _push(trainer: Any, final: Path, settings: Settings) -> None:
    from huggingface_hub import upload_folder

    upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=final,
        token=settings.training.hub_token,
        revision=settings.training.hub_revision,
        commit_message="Upload the finished run",
    )
    say(f"pushed to {trainer.hub_model_id}")
