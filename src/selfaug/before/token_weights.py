"""The weights of response tokens in the loss, from the base's scores of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor

from selfaug.before.scores import FILE, BaseScores, response_places, score_rows
from selfaug.common.errors import ConfigError, DataError
from selfaug.common.progress import counting
from selfaug.common.terminal import is_main, say
from selfaug.reference.adapter import BaseReference

if TYPE_CHECKING:
    from selfaug.before.context import BeforeTraining
    from selfaug.methods import Method
    from selfaug.training.config import SelfAugConfig

__all__ = ["scores_of_base", "token_weights"]


def scores_of_base(before: BeforeTraining) -> BaseScores:
    """Return the base's scores of all training rows, from the disk where the same base made them, else from one pass.

    They are stored in the reference cache if there is one, so that all runs that use it share the pass, and otherwise
    in the output folder. The ranks share the rows, and each gets all scores.

    Raises:
        ConfigError: If the rows are a stream.
    """
    rows = before.rows
    if not isinstance(rows, Dataset):
        raise ConfigError(
            f"method={before.method.name!r} needs the base's scores of every row before training, and the data set is "
            "a stream or was not prepared here.",
            "give a data set of known length (--dataset_streaming false, without skip_prepare_dataset).",
        )
    path = Path(before.config.reference_cache or before.folder).expanduser() / FILE
    scores = BaseScores.load(path, before.base_facts())
    missing = [row for row in rows.select_columns(["input_ids", "labels"]) if not scores.has(**row)]
    before.accelerator.wait_for_everyone()  # no rank writes while another still reads
    if not missing:
        return scores
    if is_main():
        say(f"the base model scores the responses of {len(missing)} rows ...")
    own_rows = missing[before.rank :: before.ranks]
    with before.autocast(), counting("scores of responses", len(own_rows)) as progress:
        tokens = 0 if before.single_rows else 8192
        scored = score_rows(before.model, BaseReference(), own_rows, batch_tokens=tokens, progress=progress)
    for input_ids, nll_T in gather_object(scored):
        scores.add(input_ids, nll_T.cpu())
    if is_main():
        scores.save(path)
    return scores


def token_weights(
    method: Method, config: SelfAugConfig, scores: BaseScores, rows: Any
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function from a document's tokens, and positions among them, to weights (float32).

    Raises:
        DataError: If the method would learn no token at all.
    """
    samples = []
    for row in rows.select_columns(["input_ids", "labels"]):
        places = response_places(row["labels"])
        if places.numel():
            samples.append(scores.of(row["input_ids"], places))
    fit = method.changes(config).weigh
    assert fit is not None
    weigh = fit(samples)
    kept = sum(int((weigh(nll_N) > 0).sum()) for nll_N in samples)
    total = sum(len(nll_N) for nll_N in samples)
    if not kept:
        raise DataError(
            f"method={method.name!r} leaves none of the {total} response tokens to be learnt.",
            "raise its threshold (--method_options), or choose another method.",
        )
    if kept < total and is_main():
        say(f"{kept} of {total} response tokens are learnt")
    return lambda input_ids, token_N: weigh(scores.of(input_ids, token_N))
