"""Runs the parts of an evaluation one after the other, so that nothing finished is lost or repeated."""

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
    """Compute what is not in the store, and yield each part as it is finished: name, entry, samples.

    Args:
        parts: In order.
        sides: The models; loaded when the first side that is not stored needs them.
        store: Of finished sides.
        seed: Of the bootstrap.
        bar: Progress: what, and how many steps where that is known.
        say: Told what is done and what is taken from before.
        fresh: Compute everything anew.

    Raises:
        UserError: Before anything is computed, if a part cannot be.
    """
    origin = sides.origin
    common = {
        "dtype": sides.dtype,
        "base": origin.base_hash or f"{origin.base}@{origin.revision}",
        "device": _device(),
        "versions": {name: version for name, version in versions().items() if name in _DECIDING_VERSIONS},
        "quantization": None if origin.quantization is None else str(origin.quantization),
    }
    known: list[tuple[Part, dict[str, str], dict[str, Any]]] = []
    for part in parts:
        deciding = {"part": part.name.partition(":")[0], **common, **part.deciding()}
        keys = {"base": key_of(deciding), "tuned": key_of({**deciding, "tuned": origin.tuned_hash})}
        stored = {side: None if fresh else store.get(f"{part.name}-{side}", keys[side]) for side in SIDES}
        known.append((part, keys, stored))
    look_ahead([part for part, _, stored in known if None in stored.values()])
    for part, keys, stored in known:
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
                # Before the bar: the time that loading takes says nothing of what the items take.
                with sides.side(side) as model, bar(what, part.size()) as progress:
                    payload = part.compute(side, model, progress)
            else:
                sides.release()  # the other program loads its own, and needs the memory
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
    """Ask each part that will be computed whether it can be, and name all that cannot at once.

    Raises:
        UserError: With every reason; nothing has been computed then.
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
    """Parts and samples of an earlier evaluation of the same weights that the present one does not measure anew."""
    earlier = json_of_ours(results)
    try:
        if problems(earlier) or any(earlier["hashes"].get(side) != hashes[side] for side in SIDES):
            return {}, []
        parts = {name: part for name, part in earlier["parts"].items() if name not in replaced}
        lines = [sample for sample in read_samples(samples) if sample["part"] in parts]
    except (DataError, KeyError, TypeError):
        return {}, []
    return parts, lines


def write(folder: RunFolder, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
    """Write the sample log, then the results; each whole or as it was before.

    Raises:
        DiskError: If the disk is full.
    """
    lines = "".join(json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n" for sample in samples)
    write_whole(folder.samples, lines)
    write_results(folder.results, results)
