"""The reference cache: the base's hidden states, computed once and read from disk in every step.

While the head is frozen, alignment needs nothing of the base but its final hidden states at aligned positions, and they
are the same in every epoch, step, run, seed and α. So they are written once (`ReferenceCache.write`), and every step
reads those that it draws. Sequences are looked up by a hash of their tokens and aligned positions, so packing,
shuffling, splits and ranks do not matter.

Shapes: N aligned positions, H hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from selfaug.common.errors import ConfigError
from selfaug.common.fingerprint import versions
from selfaug.common.progress import counting
from selfaug.common.terminal import say
from selfaug.model.checks import final_hidden, probe_tokens
from selfaug.model.libraries import switchable_layers
from selfaug.model.parts import head_layer
from selfaug.model.sharding import is_split, whole_shape
from selfaug.objective.head import LMHead
from selfaug.planning.plan import plan_step
from selfaug.planning.reference_batch import (
    DrawnDocument,
    ReferenceBatch,
    ReferenceLayout,
    Stored,
    reference_batch,
    sequence_key,
)
from selfaug.reference.adapter import BaseReference
from selfaug.reference.cache_files import CACHE_DTYPES, UNKNOWN, CacheIndex, CacheKey, Shard, gigabytes, require_room
from selfaug.reference.cache_key import cache_key
from selfaug.reference.passes import idle_passes, prompts_hidden

__all__ = ["CachedReference", "ReferenceCache", "open_cache"]

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20
_BATCH_TOKENS = 8192


def open_cache(
    folder: Path,
    model: nn.Module,
    tokenizer: Any,
    tables: Mapping[str, Any],
    *,
    align_boundary: bool,
    precision: str,
    dtype: str,
    agree: Callable[[Any], Any] = lambda mine: mine,
) -> ReferenceCache:
    """Open the cache in a folder for a model and its data; nothing is written yet.

    Args:
        folder: Folder with a cache, or an empty or new one.
        model: Causal LM inside PEFT's wrapper, before any distributed wrapper, as training begins.
        tokenizer: Tokenizer of the run.
        tables: Tokenised rows of each data set, by its name.
        align_boundary: Whether the last prompt position is aligned.
        precision: Mixed precision of the passes.
        dtype: Dtype to store: ``auto`` for that of the hidden states, or a key of ``CACHE_DTYPES``.
        agree: Function from what this rank knows to what the first one does; some load no weights.

    Raises:
        ConfigError: If the folder holds a cache of something else.
    """
    key = cache_key(model, tokenizer, align_boundary=align_boundary, precision=precision)
    weight = head_layer(model).weight
    hidden = whole_shape(weight)[1]
    chosen = dtype
    if dtype == "auto":
        chosen = "float32"
        if key.weights != UNKNOWN:
            computed = weight.dtype  # weights that are split over ranks compute nothing before training begins
            if not any(is_split(p) for p in model.parameters()):
                with BaseReference().serving(model) as base:
                    computed = final_hidden(base, probe_tokens(base)).dtype
            chosen = next(name for name, known in CACHE_DTYPES.items() if known == computed)
    key, chosen = agree((key, chosen))
    return ReferenceCache(folder, key, tables, hidden=hidden, dtype=chosen, exact=dtype != "auto")


class CachedReference(BaseReference):
    """The reference `base` from a cache: no pass in a step, and no second model in full fine-tuning.

    :meth:`serving` yields the model with its adapter off, for the checks before the first step; in full fine-tuning
    that is the base only until the first step.
    """

    def __init__(self, model: nn.Module, weights: str) -> None:
        self._weights = None if switchable_layers(model) else weights

    def head(self, model: nn.Module) -> LMHead | None:
        """Return ``None``: the head is frozen, so both models share it."""
        return None

    def digest(self, model: nn.Module) -> str:
        """Return the digest of the frozen weights, or in full fine-tuning the checksum of all weights at the start."""
        return super().digest(model) if self._weights is None else self._weights


class ReferenceCache:
    """A folder of hidden states for the sequences of some data sets.

    Args:
        folder: Folder of the cache; created where it does not exist.
        key: Key of the cache.
        tables: Tokenised rows (``input_ids``, ``labels``) of each data set, by its name.
        hidden: Size H of a hidden state.
        dtype: Dtype to store.
        exact: Whether an existing cache in another ``dtype`` is refused.

    Raises:
        ConfigError: If the folder holds a cache of something else, with what differs.
    """

    def __init__(
        self, folder: Path, key: CacheKey, tables: Mapping[str, Any], *, hidden: int, dtype: str, exact: bool
    ) -> None:
        self.folder, self.key, self._tables = folder, key, tables
        self._sequences = dict(_aligned_sequences(tables, key.align_boundary))
        self._open: dict[str, Tensor] = {}
        self._announced: set[str] = set()
        stored = CacheIndex.read(folder)
        if stored is None:
            wanted = [(name, n) for name, (_, _, n) in self._sequences.items()]
            stored = CacheIndex.plan(
                key, wanted, hidden=hidden, dtype=dtype, shard_bytes=SHARD_BYTES, versions=versions()
            )
        else:
            self._check(stored, dtype if exact else stored.dtype)
        self.index = stored
        self._places: dict[str, tuple[Shard, int, int]] = {}
        for shard in stored.shards:
            at = 0
            for name, count in shard.sequences:
                self._places[name] = (shard, at, count)
                at += count
        self._check_coverage()

    def _check(self, stored: CacheIndex, dtype: str) -> None:
        self.key.check(stored.key, self.folder)
        if stored.dtype != dtype:
            raise ConfigError(
                f"the reference cache in {self.folder} holds {stored.dtype}, and cache_dtype asks for {dtype}.",
                "leave --cache_dtype out to read what is there, or name an empty folder with --reference_cache.",
            )
        mine, theirs = (note.get("transformers") for note in (versions(), stored.versions))
        if mine != theirs:
            logger.warning(
                "the reference cache in %s was written with transformers %s, this is %s; a sequence of it is compared "
                "with the model before the first step.",
                self.folder,
                theirs,
                mine,
            )

    def _check_coverage(self) -> None:
        missing = [(table, row) for name, (table, row, _) in self._sequences.items() if name not in self._places]
        if missing:
            table, row = missing[0]
            raise ConfigError(
                f"the reference cache in {self.folder} was made with other data rows: {len(missing)} of "
                f"{len(self._sequences)} sequences are not among the {len(self._places)} stored ones, the first is row "
                f"{row + 1} of the {table} data set.",
                "restore the data, prompt settings and max_length that it was made with, or name an empty folder with "
                "--reference_cache.",
            )

    def missing(self, *, thorough: bool = False) -> list[Shard]:
        """Return the shards that are missing or incomplete."""
        return [shard for shard in self.index.shards if not shard.is_sealed(self.folder, thorough=thorough)]

    def announce(self, missing: Sequence[Shard]) -> None:
        """Tell the user what will be written, and check that the disk has room.

        Raises:
            ConfigError: If it has not, or if missing sequences belong to other data.
        """
        unknown = [name for shard in missing for name, _ in shard.sequences if name not in self._sequences]
        if unknown:
            raise ConfigError(
                f"the reference cache in {self.folder} was not written to its end, and {len(unknown)} of its missing "
                "sequences are not in this run's data.",
                "finish it with the data that it was begun with, or name an empty folder with --reference_cache.",
            )
        missing = [shard for shard in missing if shard.name not in self._announced]
        if not missing:
            return
        self._announced |= {shard.name for shard in missing}
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = self.index.bytes_of(missing)
        rows = sum(shard.rows for shard in missing)
        say(
            f"reference cache: {rows} aligned tokens of {sum(len(s.sequences) for s in missing)} sequences, "
            f"{self.index.hidden} numbers each in {self.index.dtype}: {gigabytes(needed)} in {self.folder}"
        )
        require_room(self.folder, needed)

    def write(
        self,
        model: nn.Module,
        layout: ReferenceLayout,
        *,
        rank: int = 0,
        ranks: int = 1,
        wait: Callable[[], None] = lambda: None,
        thorough: bool = False,
        most: Callable[[int], int] | None = None,
    ) -> int:
        """Compute and write the missing shards, each rank its share; return the number written by all ranks.

        Args:
            model: Causal LM inside PEFT's wrapper, as training begins.
            layout: Layout of the passes.
            rank: Rank of this process.
            ranks: Number of ranks.
            wait: Barrier over all ranks.
            thorough: Whether existing shards are compared with their hashes and damaged ones written again.
            most: Function that returns the largest of all ranks' numbers, where weights are split over ranks, so that
                all must run as many passes; ``None`` elsewhere.

        Raises:
            ConfigError: As :meth:`announce`.
        """
        missing = self.missing(thorough=thorough)
        self.announce(missing)
        wait()
        if rank == 0 and missing:
            self.index.write(self.folder)
        mine = missing[rank::ranks]
        idle = 0
        if most is not None:
            passes = sum(self._batch(layout, names)[0].passes for shard in mine for names in self._batches(shard))
            idle = most(passes) - passes
        with counting("aligned tokens cached", sum(shard.rows for shard in mine)) as progress:
            done = 0
            for shard in mine:
                shard.write(self.folder, self._shard(model, layout, shard, partial(_advance, progress, done)))
                done += shard.rows
            with BaseReference().serving(model) as base:
                idle_passes(base, probe_tokens(model), idle)
        wait()
        return len(missing)

    def _shard(
        self, model: nn.Module, layout: ReferenceLayout, shard: Shard, progress: Callable[[int], None]
    ) -> Tensor:
        hidden_NH = torch.empty(shard.rows, self.index.hidden, dtype=CACHE_DTYPES[self.index.dtype])
        done = 0
        for names in self._batches(shard):
            for name, part in zip(names, self.compute(model, layout, names), strict=True):
                _, at, count = self._places[name]
                hidden_NH[at : at + count] = part
                done += count
            progress(done)
        return hidden_NH

    def _batches(self, shard: Shard) -> Iterator[list[str]]:
        """Yield batches of sequences of similar length, up to ``_BATCH_TOKENS`` with padding."""
        by_length = sorted((len(self._row(name)[0]), name) for name, _ in shard.sequences)
        batch: list[str] = []
        for length, name in by_length:
            if batch and length * (len(batch) + 1) > _BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(name)
        if batch:
            yield batch

    def _batch(self, layout: ReferenceLayout, names: Sequence[str]) -> tuple[ReferenceBatch, list[int]]:
        """Return the inputs of the passes of some sequences, and each one's number of aligned positions."""
        rows = [self._row(name) for name in names]
        longest = max(len(tokens) for tokens, _ in rows)
        input_ids_BT = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask_BT = torch.zeros_like(input_ids_BT)
        drawn = []
        for row, (tokens, aligned) in enumerate(rows):
            input_ids_BT[row, : len(tokens)], mask_BT[row, : len(tokens)] = tokens, 1
            drawn.append(DrawnDocument(row, 0, aligned, len(tokens), aligned))
        batch = reference_batch({"input_ids": input_ids_BT, "attention_mask": mask_BT}, drawn, layout)
        assert batch is not None
        return batch, [len(aligned) for _, aligned in rows]

    def compute(self, model: nn.Module, layout: ReferenceLayout, names: Sequence[str]) -> list[Tensor]:
        """Compute the hidden states of some sequences (N × H each) with the model's adapter off."""
        batch, counts = self._batch(layout, names)
        assert batch.inputs is not None
        device = next(model.parameters()).device
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.inputs.items()}
        long = [(prompt.input_ids_T.to(device), prompt.index_N) for prompt in batch.long]
        with BaseReference().serving(model) as base:
            hidden_RH = prompts_hidden(base, inputs, long, layout.slice)
        flat = hidden_RH[batch.index_N.to(hidden_RH.device)].cpu()
        return list(flat.split(counts))

    def _row(self, name: str) -> tuple[Tensor, Tensor]:
        """Return tokens and aligned positions of a sequence."""
        table, row, _ = self._sequences[name]
        return _read_row(self._tables[table][row], self.key.align_boundary)

    def load(self, wanted: Sequence[Stored]) -> Tensor:
        """Return the hidden states at the wanted positions, sequence after sequence, from memory-mapped files.

        Raises:
            ConfigError: If a sequence is not in the cache, such as one of data given to the trainer later.
        """
        parts = []
        for each in wanted:
            if each.key not in self._places:
                raise ConfigError(
                    f"a sequence is not in the reference cache in {self.folder}: it holds the data sets that the "
                    "trainer was made with.",
                    "name all data when the trainer is made, or leave --reference_cache out.",
                )
            shard, at, _ = self._places[each.key]
            parts.append(self._mapped(shard).index_select(0, each.rows_N + at))
        return torch.cat(parts) if parts else torch.empty(0, self.index.hidden, dtype=CACHE_DTYPES[self.index.dtype])

    def _mapped(self, shard: Shard) -> Tensor:
        if shard.name not in self._open:
            with safe_open(shard.path(self.folder), framework="pt") as file:
                self._open[shard.name] = file.get_tensor("hidden")
        return self._open[shard.name]

    def compare(self, model: nn.Module, layout: ReferenceLayout) -> None:
        """Check that the model computes for one sequence what is stored, up to rounding.

        Raises:
            ConfigError: If the hidden states differ by more.
        """
        name = next(iter(self._sequences), None)
        if name is None or self.key.weights == UNKNOWN:
            return
        fresh = self.compute(model, layout, [name])[0].double()
        stored = self.load([Stored(name, torch.arange(len(fresh)))]).double()
        difference = ((fresh - stored).norm() / fresh.norm()).item()
        # bfloat16 has 8 significant bits, and kernels add in other orders; another model differs by tens of percent.
        if not difference < 0.05:
            raise ConfigError(
                f"the reference cache in {self.folder} does not hold what the model computes (a sequence differs by "
                f"{difference:.0%}).",
                "was it written with another version of transformers or another attention implementation? Name an "
                "empty folder with --reference_cache.",
            )


def _advance(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _aligned_sequences(tables: Mapping[str, Any], align_boundary: bool) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Yield key, and table, row and number of aligned positions, of each sequence that has any."""
    for table, rows in tables.items():
        for number in range(len(rows)):
            tokens, aligned = _read_row(rows[number], align_boundary)
            if len(aligned):
                yield sequence_key(tokens, aligned), (table, number, len(aligned))


def _read_row(row: Mapping[str, Any], align_boundary: bool) -> tuple[Tensor, Tensor]:
    ids = torch.as_tensor(row["input_ids"], dtype=torch.int64)[None]
    labels = torch.as_tensor(row["labels"], dtype=torch.int64)[None]
    plan = plan_step([{"input_ids": ids, "labels": labels}], seed=0, step=0, align_boundary=align_boundary)
    return ids[0], plan.micro[0].aligned_N
