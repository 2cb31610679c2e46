"""`selfaug train`: from flags and data to a run folder with an adapter in it.

Everything that can be wrong is said before the run folder is touched: flags, paths, data, then the length report, then
the model. Data on stdout is one line, the folder of the finished adapter.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfaug.cli.config import ALL, Call
from selfaug.cli.options import TRAIN
from selfaug.common.errors import ConfigError, UserError, nearest, tidy
from selfaug.common.terminal import emit, is_main, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.cli.parsing import Arguments, Settings
    from selfaug.data.prompts import Renderer
    from selfaug.run.folder import RunFolder
    from selfaug.run.model_source import ModelFacts

__all__ = ["COMMAND", "check_reference", "make_trainer", "run", "settle"]

COMMAND = TRAIN


def run(call: Call[Any]) -> int:
    """Check everything, train here or in processes that ``accelerate launch`` starts, and return the exit code."""
    from selfaug.cli.data import open_sources
    from selfaug.cli.encoding import tokenizer_and_renderer
    from selfaug.cli.launch import is_launched, launch, processes_wanted
    from selfaug.cli.outputs import check_writable
    from selfaug.cli.parsing import default_values, parse, print_all_help
    from selfaug.cli.rehearsal import rehearse
    from selfaug.run.checkpoint import resolve
    from selfaug.run.folder import RunFolder
    from selfaug.run.model_source import check_model

    argv = call.argv
    if ALL in argv:
        print_all_help(COMMAND)
        return 0
    arguments = parse(argv)
    values = arguments.values
    facts = check_model(
        values["model_name_or_path"], revision=values["model_revision"], trust_remote_code=values["trust_remote_code"]
    )
    settings = settle(arguments, facts)
    check_reference(settings)
    if settings.run.dry_run:
        return _dry_run(settings, arguments)
    folder = RunFolder(Path(values["output_dir"]))
    resume = _resumes(settings)
    if is_main():
        overwrite = settings.run.overwrite_output_dir
        check_writable(folder.path)
        folder.check_free(
            settings.resolved, overwrite=overwrite and not resume, resume=resume, defaults=default_values()
        )
        resolve(settings.training.resume_from_checkpoint, folder.checkpoints)
    tokenizer, renderer = tokenizer_and_renderer(settings)
    for check in settings.training.changes.check_prompts:
        check(tokenizer, renderer)
    words = None if is_launched() else processes_wanted(arguments.launch, use_cpu=settings.training.use_cpu)
    if words is not None:
        _check_sharding(words, settings)
    if words is None:  # launched processes rehearse on their own devices
        rehearse(settings, tokenizer)
    if is_main():
        say(f"reading {values['dataset_name'] or 'the data sets'} ...")
    if words is not None:
        open_sources(settings)  # errors in the first rows are reported before processes are started
        return launch(words, argv)
    return _train(settings, facts, folder, tokenizer, renderer, argv)


def _dry_run(settings: Settings, arguments: Arguments) -> int:
    from selfaug.cli.dry_run import dry_run
    from selfaug.cli.encoding import tokenizer_and_renderer
    from selfaug.cli.launch import is_launched
    from selfaug.cli.rehearsal import rehearse

    if is_launched():
        raise ConfigError(
            "dry_run was started in several processes, and one counts for all",
            "run `selfaug train --dry_run` by itself, with --num_processes or --accelerate_config as in the training.",
        )
    _check_sharding(arguments.launch, settings)
    tokenizer, renderer = tokenizer_and_renderer(settings)
    rehearse(settings, tokenizer)
    return dry_run(settings, arguments.launch, tokenizer, renderer)


def settle(arguments: Arguments, facts: ModelFacts) -> Settings:
    """Fill in settings that depend on the model and on others, and build the data classes.

    Raises:
        ConfigError: If ``max_length`` exceeds the model's context, or a data class refuses a value.
    """
    from selfaug.cli.options import AUTO, LONGEST
    from selfaug.cli.parsing import build
    from selfaug.methods import get_method
    from selfaug.methods.adapters import trains_without_adapter
    from selfaug.reference.checks import check_quantised
    from selfaug.training.ranges import ADAPTER, check_ranges

    values = arguments.values
    longest = values["max_length"]
    if longest == AUTO:
        values["max_length"] = min(facts.context or LONGEST, LONGEST)
    elif longest is not None and longest < 2:
        raise ConfigError(f"max_length is {longest}: a prompt and a response need a token each", "give 2 or more.")
    elif longest is not None and facts.context is not None and longest > facts.context:
        raise ConfigError(
            f"max_length is {longest}, and the model's context ends at {facts.context} tokens",
            f"give at most {facts.context}, or leave max_length out.",
        )
    if trains_without_adapter(get_method(values["method"])) and "use_peft" not in arguments.given:
        values["use_peft"] = False
    if (values["held_out"] or values["eval_dataset"]) and "eval_strategy" not in arguments.given:
        # Evaluation data without a strategy would never be used.
        values["eval_strategy"] = "epoch"
    settings = build(values)
    if settings.model.use_peft:
        check_ranges(settings.model, ADAPTER)
    quantised = facts.quantization is not None or settings.model.load_in_4bit or settings.model.load_in_8bit
    check_quantised(quantised=quantised, adapted=settings.model.use_peft)
    return settings


def check_reference(settings: Settings) -> None:
    """Check the settings of reference and adapter before the base is loaded.

    Raises:
        ConfigError: If the reference cannot be used with the other settings, or its model cannot be found.
    """
    from selfaug.cli.rehearsal import adapter_settings
    from selfaug.methods import get_method
    from selfaug.methods.adapters import check_adapter
    from selfaug.reference.checks import check_full_tuning
    from selfaug.run.model_source import check_model
    from selfaug.training.probe import check_probe_base

    training = settings.training
    check_adapter(get_method(training.method), adapter_settings(settings.model))
    if training.compares and not settings.model.use_peft and training.reference_cache is None:
        check_full_tuning(training.reference)
    check_probe_base(training, adapted=settings.model.use_peft)
    if not training.compares or training.reference in ("base", "initial"):
        return
    try:
        check_model(training.reference, trust_remote_code=training.trust_remote_code)
    except ConfigError as error:
        message, hint = (text.replace("model_name_or_path", "reference") for text in (error.message, error.hint))
        raise ConfigError(f"{message}{nearest(training.reference, ('base', 'initial'))}", hint) from None


def _check_sharding(words: Sequence[str], settings: Settings) -> None:
    """Refuse, before processes are started, what they could not train.

    Raises:
        ConfigError: With the remedy.
    """
    from transformers import AutoConfig

    from selfaug.cli.launch import LaunchFlags
    from selfaug.cli.rehearsal import adapter_settings
    from selfaug.cli.sharding import sharding_asked
    from selfaug.training.sharding import check_sharding

    chosen, training = settings.model, settings.training
    config = AutoConfig.from_pretrained(
        str(chosen.model_name_or_path),
        revision=chosen.model_revision,
        trust_remote_code=training.trust_remote_code,
    )
    tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    check_sharding(
        sharding_asked(LaunchFlags().check(words), training),
        training,
        adapter_settings(chosen),
        tied=tied,
        eight_bit=bool(chosen.load_in_8bit),
    )


def _resumes(settings: Settings) -> bool:
    value = settings.training.resume_from_checkpoint
    return value is not None and value.lower() not in ("false", "none")


def _train(
    settings: Settings,
    facts: ModelFacts,
    folder: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    argv: Sequence[str],
) -> int:
    from selfaug.cli.disks import resumed_checkpoint, settle_disks
    from selfaug.cli.encoding import check_embeddings, encoded_tables
    from selfaug.cli.export import export
    from selfaug.cli.recording import continued, run_manifest
    from selfaug.cli.tracking import of_training
    from selfaug.generation.store import FOLDER
    from selfaug.report.about import reached
    from selfaug.run.manifest import read_manifest, write_manifest
    from selfaug.run.trackers import go_on, remember, send
    from selfaug.training.callbacks import ProgressOnStderr, RememberTrackers, install

    settle_disks(settings, folder)
    go_on(folder, settings.training, resumed=_resumes(settings))
    tables, data, reports = encoded_tables(settings, tokenizer, renderer)
    check_embeddings(tables, settings, tokenizer, facts.embeddings)
    resumed_from = resumed_checkpoint(settings, folder)
    manifest = run_manifest(settings, facts, data, tokenizer, argv, reports)
    if resumed_from is not None and folder.manifest.is_file():
        manifest = continued(read_manifest(folder.manifest), manifest, resumed_from)

    existed = folder.path.exists()
    settings.training.output_dir = str(folder.checkpoints)
    if settings.training.push_to_hub and settings.training.hub_model_id is None:
        settings.training.hub_model_id = folder.path.name
    say(f"loading the model {settings.model.model_name_or_path} ...")
    if settings.training.compares and (settings.model.load_in_4bit or settings.model.load_in_8bit):
        say("The reference is the base as it is quantised here, not the model in its own number format.")
    try:
        trainer = make_trainer(settings, tables, tokenizer, renderer)
    except BaseException:
        if is_main() and not existed:
            folder.remove_if_empty()
        raise
    if is_main():
        folder.create(
            settings.resolved,
            overwrite=settings.run.overwrite_output_dir and resumed_from is None,
            resume=resumed_from is not None,
        )
        write_manifest(folder.manifest, manifest)
    trainer.accelerator.wait_for_everyone()
    stop = install(trainer, folder.log)
    trainer.add_callback(RememberTrackers(partial(remember, folder, trainer.callback_handler.callbacks)))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # trackers print, and stdout is for data
            result = trainer.train(resume_from_checkpoint=None if resumed_from is None else str(resumed_from))
    except (UserError, FloatingPointError) as error:
        has_samples = (folder.checkpoints / FOLDER).is_dir()  # they are kept for the next attempt
        if is_main() and not existed and not has_samples and trainer.state.global_step == 0:
            shutil.rmtree(folder.path)  # this process created it, and no step was taken
        if isinstance(error, UserError):
            raise
        raise ConfigError(
            str(error), "lower --learning_rate, look at the rows of that step, or train in a wider number format."
        ) from error
    finally:
        stop.release()
        trainer.pop_callback(ProgressOnStderr).close()
    # When a rank exits, torchrun ends the others, and the first one may still be sealing the checkpoint.
    trainer.accelerator.wait_for_everyone()
    if stop.exit_code:
        say(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}; go on with\n"
            f"  selfaug train --config {shlex.quote(str(folder.config))} --resume_from_checkpoint"
        )
        return stop.exit_code
    final = export(trainer, renderer, folder, settings, manifest, result)
    shift = reached(result.metrics)
    if shift is not None:
        say(f"shift of the prompts: {shift}")
    say(f"finished after {trainer.state.global_step} steps; the run is in {folder.path}")
    if is_main():
        send(folder, of_training(manifest["finished"]))
        emit(str(final))
    if hasattr(trainer, "end"):
        trainer.end()  # ends trackers and the process group, as `trl sft` does
    return 0


def make_trainer(
    settings: Settings, tables: dict[str, Any], tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> Any:
    """Return the trainer.

    Args:
        settings: Settings of the run.
        tables: Tables of the training (``train``) and evaluation (``eval``) rows.
        tokenizer: Tokenizer of the model.
        renderer: Renderer of the prompts.

    Raises:
        ConfigError: If trl, peft, transformers or selfaug refuse a setting or file.
    """
    from trl import get_quantization_config

    from selfaug.cli.rehearsal import adapter_settings
    from selfaug.training.trainer import SelfAugTrainer

    training, model = settings.training, settings.model
    chosen = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    training.model_init_kwargs = {**chosen, **(training.model_init_kwargs or {})}
    try:
        return SelfAugTrainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=tables["train"],
            eval_dataset=tables["eval"],
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model),
            peft_config=adapter_settings(model),
            renderer=renderer,
        )
    except UserError:
        raise
    except (ValueError, ImportError, OSError) as error:
        # trl, peft and transformers raise these for settings and files; no training step has run yet.
        raise ConfigError(
            f"the training could not be set up: {tidy(error)}",
            "change the setting or file named above; `selfaug train --help-all` explains each setting.",
        ) from error


if __name__ == "__main__":
    from selfaug.cli.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
