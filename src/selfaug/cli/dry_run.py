"""`selfaug train --dry_run`: what a training will take, before it is started. Nothing is written to the output folder.

Rows, tokens and steps are counted, memory is estimated by :mod:`selfaug.training.estimate`, and where the estimate fits
this device, a few steps are timed.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from selfaug.common.errors import ConfigError, UserError
from selfaug.common.files import read_yaml
from selfaug.common.terminal import emit, say
from selfaug.training.estimate import (
    FOUR_BIT,
    LINEAR,
    Memory,
    MicroBatch,
    ModelSizes,
    Setup,
    estimate_flops,
    estimate_memory,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.cli.parsing import Settings
    from selfaug.data.prompts import Renderer

__all__ = ["Counts", "Devices", "count_rows", "devices_of", "dry_run", "remedies"]

_STEPS = 3
"""Number of timed steps, after one that is not timed."""

_PARTS = {
    "weights": "weights",
    "adapter": "adapter",
    "optimizer": "optimiser",
    "gradients": "gradients",
    "activations": "activations",
    "logits": "logits of the loss",
    "frozen": "frozen copy",
    "gathered": "gathered for use",
}


@dataclass(frozen=True)
class Counts:
    """Numbers of tokens of each row: all, of the response, and aligned."""

    tokens: NDArray[np.int64]
    responses: NDArray[np.int64]
    aligned: NDArray[np.int64]

    def largest(self, rows: int) -> NDArray[np.int64]:
        """Return the places of the longest rows."""
        return np.argsort(-self.tokens, kind="stable")[:rows]


def count_rows(table: Any, *, boundary: bool) -> Counts:
    """Count the tokens of a table of training rows.

    Args:
        table: Table with a column ``labels``.
        boundary: Whether the last prompt position before a response is aligned too.
    """
    tokens, responses, aligned = [], [], []
    for batch in table.select_columns(["labels"]).with_format("numpy").iter(1000):
        for labels in batch["labels"]:
            prompt = np.asarray(labels) == -100
            tokens.append(len(prompt))
            responses.append(int((~prompt[1:]).sum()))
            aligned.append(int((prompt[:-1] & (prompt[1:] | boundary)).sum()))
    return Counts(*(np.array(numbers, np.int64) for numbers in (tokens, responses, aligned)))


@dataclass(frozen=True)
class Devices:
    """Number of devices, and what is split over them (:attr:`Setup.sharding`)."""

    number: int
    sharding: str


def devices_of(words: Sequence[str], training: Any) -> Devices:
    """Return the devices that the flags of ``accelerate launch`` and its configuration ask for."""
    import torch

    from selfaug.cli.launch import LaunchFlags
    from selfaug.cli.sharding import sharding_asked

    parsed = LaunchFlags().check(words)
    file: dict[str, Any] = {}
    if parsed.config_file is not None:
        file = read_yaml(parsed.config_file, "the accelerate configuration", error=ConfigError) or {}
    visible = 1 if training.use_cpu else max(1, torch.cuda.device_count())
    number = int(parsed.num_processes or file.get("num_processes") or visible)
    kind = sharding_asked(parsed, training).kind or ""
    optimizer_alone = kind in ("zero1", "zero2")
    return Devices(number, "all" if kind in ("fsdp1", "fsdp2", "zero3") else "optimizer" if optimizer_alone else "none")


def setup_of(settings: Settings, devices: Devices, config: Any, block_bytes: int) -> Setup:
    """Return what decides the memory of a run with these settings."""
    training, model = settings.training, settings.model
    chosen = (training.model_init_kwargs or {}).get("dtype", model.dtype)
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    dtype = stored if chosen in (None, "auto") else str(chosen).removeprefix("torch.")
    rest = 2 if dtype in ("bfloat16", "float16") else 4
    linear: float = FOUR_BIT if model.load_in_4bit else 1 if model.load_in_8bit else rest
    targets = tuple(LINEAR)
    wanted = model.lora_target_modules
    if wanted and "all-linear" not in wanted:
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        targets = tuple(name for name in LINEAR if name in names)
    reference = training.reference if training.reference in ("base", "initial") else "path"
    if training.reference_cache is not None:
        reference = "cached"
    optimizer = str(getattr(training.optim, "value", training.optim))
    # PEFT keeps adapters in float32; TRL converts them to bfloat16 beside a model in 4 bits.
    trained = rest if not model.use_peft else 2 if model.load_in_4bit else 4
    averages = 2.0 if "8bit" in optimizer else 0.0 if optimizer in ("sgd", "adafactor") else 2.0 * trained
    return Setup(
        rank=model.lora_r if model.use_peft else None,
        targets=targets,
        linear_bytes=linear,
        rest_bytes=rest,
        trained_bytes=trained,
        averages_bytes=averages,
        compute_bytes=2 if training.bf16 or training.fp16 else rest,
        checkpointing=training.gradient_checkpointing,
        reference=reference if training.compares else "none",
        accumulation=training.gradient_accumulation_steps,
        block_bytes=block_bytes,
        devices=devices.number,
        sharding=devices.sharding,
        frozen_head=training.freeze_head,
        dropout_bytes=(trained if training.device.type == "cpu" else 1)
        if model.use_peft and model.lora_dropout
        else None,
    )


def micro_batch_of(counts: Counts, settings: Settings, rows: int) -> MicroBatch:
    """Return the largest micro-batch: the longest rows together, all of their sequences drawn."""
    training = settings.training
    implementation = str(
        (training.model_init_kwargs or {}).get("attn_implementation", settings.model.attn_implementation)
    )
    flash = "flash" in implementation
    places = counts.largest(rows)
    aligned = counts.aligned[places] * training.align_token_fraction
    longest = int(counts.tokens[places].max())
    if training.packing or training.padding_free:
        whole = rows * int(training.max_length) if training.packing else int(counts.tokens[places].sum())
        share = whole / int(counts.tokens.sum())
        responses, prompts = (math.ceil(share * int(each.sum())) for each in (counts.responses, counts.aligned))
        return MicroBatch(
            1,
            whole,
            min(whole, responses),
            min(whole, math.ceil(prompts * training.align_token_fraction)),
            min(whole, prompts),
            document=longest,
            masked=not flash,
        )
    unequal = len(set(counts.tokens[counts.largest(max(rows, 2))].tolist())) > 1
    reference = len(places) * int(counts.aligned[places].max() + 1) if counts.aligned.any() else 0
    return MicroBatch(
        len(places),
        longest,
        int(counts.responses[places].sum()),
        int(aligned.sum()),
        reference,
        masked=not flash and rows > 1 and unequal,
    )


def remedies(model: ModelSizes, setup: Setup, batches: dict[int, MicroBatch], room: float) -> list[tuple[str, float]]:
    """Return changes of the settings with which the training would fit, with the memory that each leaves needed.

    Args:
        model: Sizes of the model.
        setup: The settings.
        batches: Largest micro-batch by number of rows, that of the settings first.
        room: Bytes of a device.
    """
    (rows, batch), *smaller = batches.items()
    tried: list[tuple[str, Setup, MicroBatch]] = []
    light = replace(setup, checkpointing=True)
    if not setup.checkpointing:
        tried.append(("--gradient_checkpointing true", light, batch))
    for fewer, less in smaller:
        words = (
            f"--per_device_train_batch_size {fewer} --gradient_accumulation_steps {setup.accumulation * rows // fewer}"
        )
        tried.append((words, setup, less))
        if not setup.checkpointing:
            tried.append((f"{words} --gradient_checkpointing true", light, less))
    least = smaller[-1][1] if smaller else batch
    if setup.linear_bytes == 4:
        half = replace(light, linear_bytes=2, rest_bytes=2, compute_bytes=2)
        half = half if setup.rank is not None else replace(half, trained_bytes=2, averages_bytes=4.0)
        tried.append(("--dtype bfloat16 --bf16 true, checkpointing and the smallest batch", half, least))
    if setup.rank is not None and setup.linear_bytes > 1:
        four = replace(light, linear_bytes=FOUR_BIT, rest_bytes=2, trained_bytes=2, averages_bytes=4.0, compute_bytes=2)
        tried.append(
            ("--load_in_4bit true --dtype bfloat16 --bf16 true, checkpointing and the smallest batch", four, least)
        )
    for number in (2, 4, 8, 16, 32, 64, 128):
        if number > setup.devices or setup.sharding != "all":
            spread = replace(light, devices=number, sharding="all")
            tried.append((f"--accelerate_config fsdp2 --num_processes {number}, checkpointing and the smallest batch",
                          spread, least))  # fmt: skip
    found: list[tuple[str, float]] = []
    for words, changed, micro in tried:
        needed = estimate_memory(model, changed, micro).total
        if needed <= room and not (words.startswith("--accelerate") and any(w.startswith("--acc") for w, _ in found)):
            found.append((words, needed))
    return found


def dry_run(settings: Settings, words: Sequence[str], tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> int:
    """Print what the training will take, and return the exit code.

    Args:
        settings: Settings of the run.
        words: Flags of ``accelerate launch``.
        tokenizer: Tokenizer of the model.
        renderer: Renderer of the prompts.

    Raises:
        ConfigError: If the model is of a kind whose memory cannot be estimated, or the rows are not tokenised.
    """
    from transformers import AutoConfig

    from selfaug.cli.encoding import encoded_tables
    from selfaug.objective.sweep import default_block_bytes

    training = settings.training
    config = AutoConfig.from_pretrained(
        str(settings.model.model_name_or_path),
        revision=settings.model.model_revision,
        trust_remote_code=training.trust_remote_code,
    )
    model = ModelSizes.of(config)
    tables, _, _ = encoded_tables(settings, tokenizer, renderer)
    table = tables["train"]
    if "labels" not in (getattr(table, "column_names", None) or ()):
        raise ConfigError(
            "dry_run counts tokens, and these rows become tokens only when the model is loaded",
            "give records or conversations (docs/data.md), or time a few steps with --max_steps 3.",
        )
    counts = count_rows(table, boundary=bool(training.align_boundary))
    devices = devices_of(words, training)
    device = training.device
    block = training.objective_memory_mb
    setup = setup_of(settings, devices, config, default_block_bytes(device) if block is None else block * 2**20)
    rows = training.per_device_train_batch_size
    sizes = [rows] + [n for n in (rows // 2, rows // 4, 1) if 0 < n < rows]
    batches = {n: micro_batch_of(counts, settings, n) for n in dict.fromkeys(sizes)}
    memory = estimate_memory(model, setup, batches[rows])
    room = _room(device)

    sequences = len(table)
    if training.packing:
        from trl.data_utils import pack_dataset

        sequences = len(pack_dataset(table.select_columns(["input_ids", "labels"]), training.max_length))
    micro_batches = math.ceil(sequences / (rows * devices.number))
    per_epoch = max(1, math.ceil(micro_batches / setup.accumulation))
    steps = training.max_steps if training.max_steps > 0 else math.ceil(per_epoch * training.num_train_epochs)
    passes = steps * setup.accumulation if setup.reference in ("base", "initial", "path") else 0

    per_step = min(sequences, rows * devices.number * setup.accumulation)
    mean = _mean_micro_batch(counts, training, rows, sequences)
    flops = estimate_flops(model, setup, mean)
    lines = [
        f"rows             {len(counts.tokens):,} ({sequences:,} sequences, {per_step:,} in a step)",
        f"tokens           {int(counts.tokens.sum()):,} ({int(counts.responses.sum()):,} of responses, "
        f"{int(counts.aligned.sum()):,} aligned); longest row {int(counts.tokens.max()):,}",
        f"steps            {steps:,} ({per_epoch:,} an epoch) on {devices.number} device{'s' * (devices.number > 1)}",
        f"reference passes {passes:,} on each device" + _drawn(training, setup),
        f"arithmetic       {flops.total * setup.accumulation:.3g} FLOPs a step and device "
        f"(training {flops.training / flops.total:.0%}, reference {flops.reference / flops.total:.0%}, "
        f"loss {flops.loss / flops.total:.0%})",
        "",
        f"peak memory of a device, for the {rows} longest rows:",
        *_memory_lines(memory),
        f"  {'together':<20}{_size(memory.total):>12}   of {_size(room)} {'on ' + device.type} here",
        "",
        f"disk: a checkpoint about {_size(setup.trained(model) * (setup.trained_bytes + setup.averages_bytes))}"
        + _cache_disk(counts, model, setup),
    ]
    if memory.total > room:
        lines += ["", "it does not fit. What would make it fit:"]
        found = remedies(model, setup, batches, room)
        lines += [f"  {_size(needed):>10}  {words}" for words, needed in found] or ["  nothing that was tried"]
    for line in lines:
        emit(line)
    emit("")
    emit(_timed(settings, tables, tokenizer, renderer, steps, devices, fits=memory.total <= room))
    return 0


def _drawn(training: Any, setup: Setup) -> str:
    if setup.reference == "cached":
        return ": hidden states come from the cache"
    if setup.reference != "none" and training.align_fraction < 1:
        return f", over {training.align_fraction:.3g} of the sequences"
    return ""


def _mean_micro_batch(counts: Counts, training: Any, rows: int, sequences: int) -> MicroBatch:
    """Return the average micro-batch."""
    share = min(1.0, rows / sequences)
    drawn = share * training.align_fraction
    aligned = int(counts.aligned.sum())
    return MicroBatch(
        1,
        max(1, round(share * int(counts.tokens.sum()))),
        round(share * int(counts.responses.sum())),
        round(drawn * training.align_token_fraction * aligned),
        round(drawn * (aligned + len(counts.aligned))),
        document=max(1, round(float(counts.tokens.mean()))),
    )


def _memory_lines(memory: Memory) -> Iterator[str]:
    for entry in fields(memory):
        value = getattr(memory, entry.name)
        if value:
            yield f"  {_PARTS[entry.name]:<20}{_size(value):>12}"


def _cache_disk(counts: Counts, model: ModelSizes, setup: Setup) -> str:
    if setup.reference != "cached":
        return ""
    return f", the reference cache {_size(int(counts.aligned.sum()) * model.hidden * setup.stream_bytes)}"


def _size(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _room(device: Any) -> float:
    """Return the bytes of memory of a device, for a CPU those that are free."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    import psutil  # type: ignore[import-untyped]  # accelerate brings it; it has no types

    return float(psutil.virtual_memory().available)


def _timed(
    settings: Settings,
    tables: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    steps: int,
    devices: Devices,
    *,
    fits: bool,
) -> str:
    """Return a sentence on the time, from a few steps on this device."""
    import torch

    training = settings.training
    changes = training.changes
    asks = [name for name in ("generates", "weigh", "fisher", "start", "rewrite") if getattr(changes, name)]
    reasons = {
        "it does not fit here": not fits,
        "the weights are split over devices": devices.number > 1 and devices.sharding == "all",
        f"method {training.method!r} works on the base before the first step": bool(asks),
        "several GPUs are visible (set CUDA_VISIBLE_DEVICES=0 to time one)": (
            not training.use_cpu and torch.cuda.device_count() > 1
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            return f"time: not measured, since {reason}"
    say(f"timing {_STEPS} steps ...")
    try:
        seconds, peak = time_steps(settings, tables, tokenizer, renderer)
    except UserError:
        raise
    except (RuntimeError, MemoryError) as error:
        return f"time: not measured, since the steps failed: {str(error).splitlines()[0][:200]}"
    mean = statistics.mean(seconds)
    alone = " (without communication between devices)" if devices.number > 1 else ""
    cached = ", each with a reference pass in place of the cache" if settings.training.reference_cache else ""
    return (
        f"time: {mean:.3g} s a step{alone}, so {_duration(mean * steps)} for {steps:,} steps "
        f"(mean of {_STEPS} steps here{cached}; they took {_size(peak)} at most)"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def time_steps(
    settings: Settings, tables: dict[str, Any], tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> tuple[list[float], float]:
    """Train a few steps in a folder that is then removed; return the seconds of each but the first, and the peak.

    The peak is that of the device's allocator; on a CPU that of the process's resident memory beyond what it was before
    the model was loaded.
    """
    import torch
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback
    from transformers.trainer_utils import IntervalStrategy

    from selfaug.cli.train import make_trainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.began: list[float] = []
            self.ended: list[float] = []

        def _now(self) -> float:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began.append(self._now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended.append(self._now())

    training = settings.training
    training.max_steps, training.save_strategy = _STEPS + 1, IntervalStrategy.NO
    training.eval_strategy, training.report_to, training.push_to_hub = IntervalStrategy.NO, [], False
    training.logging_strategy, training.load_best_model_at_end = IntervalStrategy.NO, False
    training.reference_cache, training.disable_tqdm = None, True
    on_gpu = torch.cuda.is_available() and not training.use_cpu
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, _resident_peak() as resident:
        training.output_dir = folder
        trainer = make_trainer(settings, {**tables, "eval": None}, tokenizer, renderer)
        clock = Clock()
        for printing in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(printing)
        trainer.add_callback(clock)
        trainer.train()
    peak = float(torch.cuda.max_memory_allocated()) if on_gpu else resident[0]
    taken = [end - begin for begin, end in zip(clock.began, clock.ended, strict=True)]
    return taken[1:] or taken, peak


@contextlib.contextmanager
def _resident_peak() -> Iterator[list[float]]:
    """Measure the peak of this process's resident memory in the block, beyond that at its start."""
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], float(process.memory_info().rss - before))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
