"""How does a trainer read the base's hidden states from disk, and write them before its first step?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.integrations import is_deepspeed_zero3_enabled

from selfaug.common.errors import ConfigError
from selfaug.reference.cache_key import refuse_uncacheable
from selfaug.reference.cached import CachedReference, ReferenceCache, open_cache
from selfaug.step.reference_batch import ReferenceLayout
from selfaug.training.resuming import ResumableTrainer

__all__ = ["CachingTrainer"]


class CachingTrainer(ResumableTrainer):
    """`ResumableTrainer` with a reference cache, where the settings name one.

    Its subclass notes the tokenised rows, asks for the reference, and sets ``_layout`` before the first pass.
    """

    _layout: ReferenceLayout
    _cache: ReferenceCache | None = None
    _cache_ready = False
    _tables: Mapping[str, Dataset] = {}

    def _note_rows(self, rows: Any, name: str) -> None:
        """Keep the tokenised rows of a data set that the trainer is made with."""
        if not isinstance(rows, Dataset):
            raise ConfigError(
                f"reference_cache needs to know all rows before training, and the {name} data set is a stream.",
                "load it whole (--dataset_streaming false), or leave --reference_cache out.",
            )
        self._tables = {**self._tables, name: rows.with_format("torch", ["input_ids", "labels"])}

    def _cached_reference(self, folder: str) -> CachedReference:
        """Open the cache; refused by name where it is not this run's.

        Raises:
            ConfigError: With the remedy.
        """
        refuse_uncacheable(self._base_model)
        if is_deepspeed_zero3_enabled():
            raise ConfigError(
                "reference_cache cannot tell whether it belongs to weights that ZeRO stage 3 loads in parts.",
                "use ZeRO stage 2 or FSDP2, or leave --reference_cache out.",
            )
        if not self._tables:
            raise ConfigError(
                "reference_cache needs tokenised rows, and skip_prepare_dataset leaves them to somebody else.",
                "leave --reference_cache or skip_prepare_dataset out.",
            )
        with self.accelerator.autocast():
            self._cache = open_cache(
                Path(folder).expanduser(),
                self._base_model,
                self._tokenizer,
                self._tables,
                align_boundary=bool(self.args.align_boundary),
                precision=self.accelerator.mixed_precision,
                dtype=self.args.cache_dtype,
            )
        return CachedReference(self._base_model, self._cache.key.weights)

    def _announce_cache(self) -> None:
        """Say what will be written, before anything else is."""
        if self._cache is None:
            return
        missing = self._cache.missing()
        if missing and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ConfigError(
                f"the reference cache in {self._cache.folder} is not whole, and a sharded model cannot write it.",
                "write it first with `selfaug cache`, on one device.",
            )
        self._cache.announce(missing)

    def write_reference_cache(self, *, thorough: bool = False) -> int:
        """Write what is missing of the reference cache and try one sequence of it; the number of shards written.

        Args:
            thorough: Also read what is there, and write damaged shards anew.

        Raises:
            ConfigError: If no cache is asked for, or it does not hold what the model computes.
        """
        if self._cache is None:
            raise ConfigError("no reference_cache is named, so nothing can be written.", "name it: --reference_cache.")
        written = 0
        with self.accelerator.autocast():
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                written = self._cache.write(
                    self._base_model,
                    self._layout,
                    rank=self.accelerator.process_index,
                    ranks=self.accelerator.num_processes,
                    wait=self.accelerator.wait_for_everyone,
                    thorough=thorough,
                )
            self._cache.compare(self._base_model, self._layout)
        self._cache_ready = True
        return written

    def _ready_cache(self) -> None:
        if self._cache is not None and not self._cache_ready:
            self.write_reference_cache()

    def _check_model(self) -> None:
        super()._check_model()
        self._ready_cache()
