"""The loop over the parts of an evaluation, which stores each finished part and never repeats it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError, DataError, UserError
from selfaug.common.files import json_of_ours
from selfaug.common.fingerprint import versions
from selfaug.common.store import Store, key_of, write_whole
from selfaug.evaluation.parts import Finished, Part, Progress
from selfaug.evaluation.results import SIDES, problems, read_samples, write_results
from selfaug.run.folder import RunFolder
from selfaug.run.models import Sides

__all__ = ["Bar", "evaluate", "kept_parts", "look_ahead", "write"]

Bar = Callable[[str, int | None], AbstractContextManager[Progress]]
# Libraries whose version can change a number.
_DECIDING_VERSIONS = ("selfaug", "torch", "transformers", "peft", "tokenizers")


def evaluate(
    parts: Sequence[Part],
    sides: Sides,
    store: Store,
    *,
    seed: int,
    bar: Bar,
    say: Callable[[str], None],
    fresh: bool = False,
) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Compute what is not in the store, and yield name, entry and samples of each part as it is finished.

    Args:
        parts: Parts in the order of computation.
        sides: Base and tuned model, loaded when a side that is not stored needs them.
        store: Store of finished sides.
        seed: Seed of the bootstrap.
        bar: Function that opens a progress bar for a name and a number of steps (``None`` where it is not known).
        say: Function that prints a line about what is done or taken from the store.
        fresh: Whether everything is computed anew.

    Raises:
        UserError: If a part cannot be computed; raised before anything is.
    """
    origin = sides.origin
    common = {
        "dtype": sides.dtype,
        "base": origin.base_hash or f"{origin.base}@{origin.revision}",
        "device": _device(),
        "versions": {name: version for name, version in versions().items() if name in _DECIDING_VERSIONS},
        "quantization": None if origin.quantization is None else str(origin.quantization),
    }
    planned: list[tuple[Part, dict[str, str], dict[str, Any]]] = []
    for part in parts:
        deciding = {"part": part.name.partition(":")[0], **common, **part.deciding()}
        keys = {"base": key_of(deciding), "tuned": key_of({**deciding, "tuned": origin.tuned_hash})}
        stored = {side: None if fresh else store.get(f"{part.name}-{side}", keys[side]) for side in SIDES}
        planned.append((part, keys, stored))
    look_ahead([part for part, _, stored in planned if None in stored.values()])
    for part, keys, stored in planned:
        for side in sides.order():
            found = stored[side]
            if found is not None:
                say(f"{part.name}, {side}: finished before")
                continue
            began = time.perf_counter()
            what = f"{part.name}, {side}"
            if part.needs_model:
                if not sides.holds(side):
                    say("loading the model ...")
                # The model is loaded before the bar starts, since loading would distort the estimated time.
                with sides.side(side) as model, bar(what, part.size()) as progress:
                    payload = part.compute(side, model, progress)
            else:
                sides.release()  # the other program needs the memory for its own model
                with bar(what, part.size()) as progress:
                    payload = part.compute(side, None, progress)
            seconds = time.perf_counter() - began
            stored[side] = {"seconds": seconds, "payload": payload}
            store.put(f"{part.name}-{side}", keys[side], stored[side])
            say(f"{part.name}, {side}: {seconds:.1f} s")
        both: dict[str, Any] = {side: stored[side] for side in SIDES}
        payloads = {side: both[side]["payload"] for side in SIDES}
        finished: Finished = part.finish(payloads, seed)
        entry = {
            **finished.entry,
            "key": key_of({"keys": keys, "settings": finished.entry["settings"], "seed": seed}),
            "seconds": {side: round(float(both[side]["seconds"]), 3) for side in SIDES},
        }
        yield part.name, entry, [{"part": part.name, **sample} for sample in finished.samples]


def look_ahead(parts: Sequence[Part]) -> None:
    """Check that each part to be computed can be, and report all that cannot in one error.

    Raises:
        UserError: If a part cannot be computed; with every reason.
    """
    faults: dict[str, UserError] = {}
    for part in parts:
        try:
            part.look_ahead()
        except UserError as error:
            faults[part.name] = error
    if len(faults) == 1:
        raise next(iter(faults.values()))
    if faults:
        reasons = dict.fromkeys(error.message for error in faults.values())
        hints = dict.fromkeys(error.hint for error in faults.values())
        raise ConfigError(
            f"{len(faults)} parts cannot be measured ({', '.join(faults)}): {' '.join(reasons)}", " ".join(hints)
        )


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def kept_parts(
    results: Path, samples: Path, hashes: Mapping[str, Any], replaced: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the parts and samples of an earlier evaluation of the same weights that are not measured anew."""
    earlier = json_of_ours(results)
    try:
        if problems(earlier) or any(earlier["hashes"].get(side) != hashes[side] for side in SIDES):
            return {}, []
        # Only of an adapter of another trainer can the prompt layout change.
        same_prompt = earlier["hashes"].get("renderer") == hashes.get("renderer")
        parts = {
            name: part
            for name, part in earlier["parts"].items()
            if name not in replaced and (same_prompt or part["group"] != "task")
        }
        lines = [sample for sample in read_samples(samples) if sample["part"] in parts]
    except (DataError, KeyError, TypeError):
        return {}, []
    return parts, lines


def write(folder: RunFolder, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
    """Write the sample log, then the results, each atomically.

    Raises:
        DiskError: If the disk is full.
    """
    lines = "".join(json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n" for sample in samples)
    write_whole(folder.samples, lines)
    write_results(folder.results, results)
