"""Does a reference cache whose writing was killed, at any file operation, resume and end as the uninterrupted one?"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path

import pytest
import torch
from datasets import Dataset, disable_progress_bars

from selfaug.reference import cached
from selfaug.reference.cache_files import INDEX, CacheIndex
from selfaug.training.config import SelfAugConfig
from selfaug.training.trainer import SelfAugTrainer
from tests.integration import small
from tests.integration.killed_run import Killer

ROWS = 40


def write(cache: Path) -> int:
    cached.SHARD_BYTES = 100 * 32 * 4
    trainer = SelfAugTrainer(
        small.model(),
        SelfAugConfig(
            str(cache.parent / "run"), reference_cache=str(cache), bf16=False, use_cpu=True, report_to="none"
        ),
        train_dataset=Dataset.from_list(small.rows(ROWS)),
        processing_class=small.tokenizer(),
        peft_config=small.lora(),
    )
    return trainer.write_reference_cache()


def child(cache: str, at: int | None) -> None:
    try:
        with (Path(cache).parent / "talk.txt").open("a") as talk:
            os.dup2(talk.fileno(), 1)
            os.dup2(talk.fileno(), 2)
        torch.set_num_threads(1)
        disable_progress_bars()
        killer = Killer(Path(cache), at, Path(cache))
        sys.addaudithook(killer)
        write(Path(cache))
        (Path(cache).parent / "operations").write_text(str(killer.seen))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def written_by_a_child(cache: Path, at: int | None) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    cache.parent.mkdir()
    process = context.Process(target=child, args=(str(cache), at))
    process.start()
    process.join()
    return process.exitcode


def contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


@pytest.mark.nightly
@pytest.mark.slow
def test_a_killed_cache_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "SHARD_BYTES", 100 * 32 * 4)  # restored afterwards; `write` sets it in children
    whole = tmp_path / "whole" / "cache"
    assert written_by_a_child(whole, None) == 0, (whole.parent / "talk.txt").read_text()[-3000:]
    operations = int((whole.parent / "operations").read_text())
    expected = contents(whole)
    index = CacheIndex.read(whole)
    assert index is not None
    assert len(index.shards) >= 4
    assert operations >= 4 * len(index.shards), "the files that it writes were not seen"
    torn = kept = 0
    for at in range(2, operations, 5):
        cache = tmp_path / f"at{at}" / "cache"
        assert written_by_a_child(cache, at) == -signal.SIGKILL, f"operation {at} never came"
        sealed = {shard.name: shard.path(cache).stat().st_mtime_ns for shard in index.shards if shard.is_sealed(cache)}
        assert len(sealed) < len(index.shards)
        kept += len(sealed)
        torn += len([path for path in cache.iterdir() if path.name != INDEX]) != 2 * len(sealed)
        assert write(cache) in (len(index.shards) - len(sealed), len(index.shards))
        after = contents(cache)
        assert {name: after.get(name) for name in expected} == expected, f"killed at operation {at}"
        for name, stamp in sealed.items():
            assert (cache / f"{name}.safetensors").stat().st_mtime_ns == stamp, "a whole shard was written again"
    assert torn, "no kill left a file half-way"
    assert kept, "no kill came after a whole shard"
