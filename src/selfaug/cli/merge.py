"""`selfaug merge`: folds a run's adapter into its base, writes the model, and measures how much of the tuning it keeps.

The folder's path goes to stdout, everything else to stderr. The measurement uses the model as read back from the disk.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from selfaug.cli.config import Call, Command
from selfaug.cli.options import DTYPES
from selfaug.cli.outputs import check_writable, open_to_others, written_whole
from selfaug.cli.subject import Subject, opened
from selfaug.common.errors import ConfigError, DataError, UserError
from selfaug.common.options import REQUIRED, option
from selfaug.common.progress import counting
from selfaug.common.terminal import emit, say
from selfaug.data.prompt_files import SETTINGS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer
    from selfaug.data.record import Conversation, Record
    from selfaug.evaluation.merging import Answers, Kept
    from selfaug.run.folder import RunFolder
    from selfaug.run.models import Origin, Sides

__all__ = ["COMMAND", "run", "run_prompts"]


@dataclass(kw_only=True)
class Settings(Subject):
    """Settings of `selfaug merge`."""

    output_dir: str = option(REQUIRED, "Folder of the merged model.", group="Merged model", metavar="OUT")
    base: str | None = option(
        None, "Folder or hub name of the base model, if it has moved since training.", group="Run", metavar="MODEL"
    )
    dtype: str = option(
        "auto",
        "Number format of the merged weights; 'auto' is the base's own, or float32 where that loses the tuning.",
        group="Merged model",
        choices=DTYPES,
    )
    overwrite_output_dir: bool = option(False, "Replace the merged model in OUT.")
    prompts: int = option(
        50, "Number of prompts whose answers are compared; 0 compares only the weights.", group="What is measured"
    )


COMMAND = Command(
    "merge",
    Settings,
    __doc__ or "",
    (
        "selfaug merge runs/mine --output_dir models/mine",
        "selfaug merge runs/mine --output_dir models/mine --dtype bfloat16 --prompts 200",
    ),
)


def run(call: Call[Settings]) -> int:
    """Check everything, fold, write, read back and measure; return the exit code.

    The folder appears as a whole or not at all.
    """
    from selfaug.cli.encoding import load_tokenizer
    from selfaug.lab import shipped
    from selfaug.run.model_source import check_model
    from selfaug.run.models import check_origin

    settings = call.settings
    if settings.prompts < 0:
        raise ConfigError(f"--prompts is {settings.prompts}, and it counts prompts", "give 0 or more.")
    folder = opened(settings)
    if not folder.is_adapter:
        raise ConfigError(
            f"the run in {folder.path} trained the whole model, so it has no adapter to fold",
            f"use {folder.finished} as it is.",
        )
    out = Path(settings.output_dir).expanduser()
    _check_output(out, folder.path if folder.foreign is None else folder.foreign.folder, settings.overwrite_output_dir)
    origin = check_origin(folder, None if settings.base is None else shipped.resolve(settings.base))
    facts = check_model(origin.base, revision=origin.revision, trust_remote_code=origin.trust_remote_code)
    if facts.quantization is not None:
        raise ConfigError(
            f"the base model {origin.base} is quantised ({facts.quantization}): an adapter cannot be folded into its "
            "weights without rounding the adapter away",
            "serve the adapter over the quantised model as it is.",
        )
    quantised = None if origin.quantization is None else origin
    if quantised is not None:
        say("The adapter was trained over quantised weights; it is folded into the unquantised ones.")
        origin = dataclasses.replace(origin, quantization=None)
    if facts.folder is not None:
        _check_space(out, facts.folder, settings.dtype)
    renderer = folder.load_renderer()
    tokenizer = load_tokenizer(folder.tokenizer, trust_remote_code=origin.trust_remote_code)
    prompts = run_prompts(folder, tokenizer, renderer, origin.context, settings.prompts) if settings.prompts else []
    if quantised is not None and prompts:
        _compare_bases(quantised, origin, tokenizer, renderer, prompts)
    say(f"loading the model {origin.base} ...")
    say(str(_merge(origin, tokenizer, renderer, prompts, out, settings.dtype)))
    emit(str(out))
    return 0


def _check_output(out: Path, run: Path, overwrite: bool) -> None:
    check_writable(out)
    inside = run.resolve()
    if out.resolve() == inside or inside.is_relative_to(out.resolve()):
        raise ConfigError(f"output_dir {out} holds the run itself", "give a folder outside the run.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"output_dir {out} is not empty", "give another folder, or pass --overwrite_output_dir to replace it."
        )
    if not all((out / name).is_file() for name in ("config.json", SETTINGS)):
        raise ConfigError(
            f"output_dir {out} holds something else than a merged model, which would be lost",
            "give another folder, or remove what is in it yourself.",
        )


def _check_space(out: Path, base: Path, dtype: str) -> None:
    from selfaug.common.weights import weight_files

    parent = next(path for path in (out.resolve(), *out.resolve().parents) if path.exists())
    size = sum(path.stat().st_size for path in weight_files(base))
    # Files of two bytes a weight may double; the saving of a smaller format is ignored.
    needed = size * (2 if dtype == "float32" else 1) + 2**24
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ConfigError(
            f"the merged model needs about {needed / 2**30:.1f} GiB, and {parent} has {free / 2**30:.1f} GiB free",
            "free some space, or give a folder on another disk.",
        )


def run_prompts(
    folder: RunFolder, tokenizer: PreTrainedTokenizerBase, renderer: Renderer, context: int | None, count: int
) -> list[list[int]]:
    """Return the token ids of at most ``count`` prompts, evenly spaced in the held-out, else the training rows.

    Where these rows are missing, the prompts are simple questions, and a message says so.

    Args:
        folder: Folder of a finished run.
        tokenizer: Tokenizer of the run.
        renderer: Renderer of the run.
        context: Longest sequence of the model in tokens; a prompt that leaves no room for an answer is cut at its left.
        count: Largest number of prompts.
    """
    from selfaug.data.encode import encode
    from selfaug.data.record import Record
    from selfaug.evaluation.merging import LONGEST_ANSWER

    longest = folder.read_config().get("max_length")
    questions = [Record(f"How many days are {weeks} weeks?", (), ("-",)) for weeks in range(2, 2 + count)]
    for items in (_rows_of(folder), questions):
        number = min(count, len(items))
        rows = encode(
            [items[place * len(items) // number] for place in range(number)],
            tokenizer,
            renderer,
            max_length=longest if isinstance(longest, int) else None,
            cut_prompt_left=True,
            on_bad_row="skip",
        ).rows
        # A prompt ends before the first token with a label.
        prompts = [row["input_ids"][: next(i for i, label in enumerate(row["labels"]) if label >= 0)] for row in rows]
        room = None if context is None else max(1, context - LONGEST_ANSWER)
        fitting = [prompt if room is None else prompt[-room:] for prompt in prompts if prompt]
        if fitting:
            return fitting
    raise DataError("there are no prompts to compare answers on", "pass --prompts 0 to compare the weights alone.")


def _rows_of(folder: RunFolder) -> Sequence[Record | Conversation]:
    """Return the held-out or evaluation rows of the run, else its training rows; none where they are unreadable."""
    from selfaug.data.read import read_rows
    from selfaug.evaluation.data import task_data

    config = folder.read_config()
    manifest = folder.read_manifest()
    try:
        return task_data([], config, manifest, on_bad_row="skip")[0].items
    except UserError:
        pass  # nothing was held out, or only conversations, which have prompts, too
    name, split = str(config.get("dataset_name") or ""), str(config.get("dataset_train_split") or "train")
    try:
        path = Path(name).expanduser()
        loaded = read_rows(
            path if path.exists() else name,
            format=str(config.get("format") or "auto"),
            mapping=config.get("map"),
            on_bad_row="skip",
            split=split,
        )
        if loaded.kind != "trl":
            return cast("Sequence[Record | Conversation]", loaded.items)
        reason = "is in a format that does not say where a prompt ends"
    except UserError as error:
        reason = f"cannot be read ({error.message})"
    say(f"The run's data {reason}; answers to simple questions are compared instead.")
    return []


def _compare_bases(
    quantised: Origin,
    full: Origin,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    prompts: Sequence[Sequence[int]],
) -> None:
    """Say what it changes that the adapter leaves the quantised base that it was trained over."""
    from selfaug.evaluation.merging import Answers
    from selfaug.run.models import Sides

    try:
        with counting("answers on the quantised base", 3 * len(prompts)) as progress:
            trained = Sides(quantised)
            answers = Answers.of(trained, tokenizer, renderer, prompts, progress)
            trained.release()
    except ConfigError as error:
        say(f"What the change of base changes is not measured: {error.message}.")
        return
    with counting("answers on the unquantised base", 2 * len(prompts)) as progress:
        other = Sides(full, "float32")
        say(str(answers.on_other_base(other, progress)))
        other.release()


class _TooLittleError(ConfigError):
    """The error of a written model that keeps too little of the tuning."""


def _merge(
    origin: Origin,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    prompts: Sequence[Sequence[int]],
    out: Path,
    dtype: str,
) -> Kept:
    """Write the merged model to ``out`` in a number format that keeps the tuning, and return what it keeps.

    Raises:
        ConfigError: If the requested format loses the tuning, or the adapter cannot be folded; ``out`` is then
            unchanged.
    """
    from selfaug.evaluation.merging import Answers
    from selfaug.run.models import Sides

    # Base and tuned model are loaded each on its own: an adapter whose switch is not exact can be folded all the same,
    # and loading one may rewrite the base's weights.
    origin = dataclasses.replace(origin, switchable=False)
    tuned = Sides(origin, "float32")
    answers = None
    if prompts:
        with counting("answers", 3 * len(prompts)) as progress:
            answers = Answers.of(tuned, tokenizer, renderer, prompts, progress)
    with Sides(origin).side("base") as base:

        def written(name: str) -> Kept:
            return _write(tuned, base, tokenizer, renderer, answers, out, name)

        own = str(base.dtype).removeprefix("torch.")
        if dtype != "auto" or own == "float32":
            return written(own if dtype == "auto" else dtype)
        try:
            return written(own)
        except _TooLittleError as error:
            say(error.message)
        say("float32 is written instead; a server must load it in float32, or it rounds the tuning away as it loads.")
        return written("float32")


def _write(
    tuned: Sides,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    answers: Answers | None,
    out: Path,
    dtype: str,
) -> Kept:
    """Write the merged model in one number format, read it back, and return what it keeps.

    Raises:
        ConfigError: If it keeps too little, or the folder cannot be written.
    """
    import torch

    from selfaug.evaluation.merging import Kept, write_weights
    from selfaug.run.models import Sides

    model = tuned.fold()
    shares = write_weights(model, base, getattr(torch, dtype))
    with written_whole(out) as partial:
        _save(model, tokenizer, renderer, partial)
        there = dataclasses.replace(tuned.origin, final=partial, adapter=False, switchable=False)
        with Sides(there, "float32").side("tuned") as read:
            _check_same(read, model)
            outputs = None
            if answers is not None:
                with counting(dtype, len(answers.prompts)) as progress:
                    outputs = answers.compare(read, progress)
        kept = Kept(dtype, shares, outputs)
        lacks = kept.lacks()
        if lacks is not None and dtype == "float32":
            raise _TooLittleError(
                f"the merged model is not what base and adapter are, even in float32: {lacks}; nothing was saved",
                "adapters of this kind cannot be folded: serve the base model with the adapter.",
            )
        if lacks is not None:
            raise _TooLittleError(
                f"{dtype} is too coarse for what this run trained: {lacks}; it was not saved",
                "pass --dtype float32, which keeps all of it.",
            )
    return kept


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, renderer: Renderer, folder: Path) -> None:
    from safetensors import SafetensorError

    from selfaug.data.rag_template import save_rag_template
    from selfaug.generation.decoding import stop_ids

    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    if model.generation_config is not None:
        # The run may end its answers with another token than the base. This is written after the model, since together
        # transformers would refuse a changed configuration with a contradiction, as some published ones have.
        model.generation_config.eos_token_id = stop_ids(model, tokenizer, renderer)
        model.generation_config.to_json_file(folder / "generation_config.json")
    tokenizer.save_pretrained(folder)
    renderer.save(folder)
    save_rag_template(renderer, tokenizer, folder)
    open_to_others(folder)


def _check_same(read: PreTrainedModel, model: PreTrainedModel) -> None:
    """Check that each weight that is read back is the one that was written."""
    import torch

    known = dict(read.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        other = known.get(name)
        if other is None or not torch.equal(other.to(parameter.device), parameter.float()):
            raise ConfigError(
                f"{name} is not read back as it was written; nothing was saved",
                "check the disk; if it is sound, serve the base model with the adapter as it is.",
            )
