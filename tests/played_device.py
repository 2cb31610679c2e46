"""How often does a step of training make the host wait for the device? Counted on the CPU, on a device that is played.

The weights, and what was copied to the device, count as being there, and so does all that is computed from them.
Counted are: reads of such a tensor by the host (``item``, ``tolist``, ``cpu``, ``bool``, ``nonzero``, a mask as index),
and copies to the device that wait (``to`` without ``non_blocking``). Each is a synchronisation on a GPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.data._utils import fetch
from transformers import TrainerCallback

from selfaug import SelfAugConfig, SelfAugTrainer
from tests.integration.steps import SEQUENCES
from tests.models import lora_config, tiny, tiny_tokenizer

STEPS = 2  # that are counted, after a first one

_READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"}


class Device:
    """The tensors that count as being on the device, and what made the host wait for it."""

    def __init__(self) -> None:
        self.counting = False
        self.collating = False
        self.waits: Counter[str] = Counter()
        self._storages: dict[int, Any] = {}  # kept, so that no other tensor gets the address of one of them

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def take(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage

    def wait(self, what: str) -> None:
        if self.counting:
            self.waits[f"{_caller()}: {what}"] += 1

    @contextmanager
    def played(self) -> Iterator[None]:
        """Play the device for what runs inside; what a data loader collates is still the host's."""
        fetcher_class: Any = fetch._MapDatasetFetcher
        original = fetcher_class.fetch

        def collate(fetcher: Any, index: Any) -> Any:
            self.collating = True
            try:
                return original(fetcher, index)
            finally:
                self.collating = False

        fetcher_class.fetch = collate
        try:
            with _Calls(self), _Operations(self):
                yield
        finally:
            fetcher_class.fetch = original


class _Calls(TorchFunctionMode):
    """Sees the calls that copy between host and device, which do nothing where both are the CPU."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._device.collating:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if kwargs.get("device") is not None and not (args and isinstance(args[0], Tensor)):  # made on the device
            made = func(*args, **kwargs)
            if name == "tensor" and made.numel():
                self._device.wait("torch.tensor on the device")
            return self._placed(made)
        if not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        there = self._device.holds(args[0])
        if name in ("cpu", "tolist", "numpy") and there:
            self._device.wait(f".{name}()")
            with _disable_current_modes():
                return func(args[0].clone())
        if name == "to" and there and args[1:] == ("cpu",):
            if not kwargs.get("non_blocking"):
                self._device.wait(".to(cpu)")
            with _disable_current_modes():
                return args[0].clone()
        if name == "to" and not there and any(isinstance(a, torch.device) for a in (*args[1:], kwargs.get("device"))):
            if not kwargs.get("non_blocking"):
                self._device.wait(".to(device)")
            return self._placed(func(*args, **kwargs))
        return func(*args, **kwargs)

    def _placed(self, tensor: Tensor) -> Tensor:
        with _disable_current_modes():
            tensor = tensor.clone()
        self._device.take(tensor)
        return tensor


class _Operations(TorchDispatchMode):
    """Follows what is computed from tensors on the device, and sees the operations whose result the host must know."""

    def __init__(self, device: Device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = any(self._device.holds(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        out = func(*args, **kwargs)
        if there:
            name = func.overloadpacket.__name__
            masks = [x for x in tree_leaves(args[1:]) if isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)]
            if name in _READS or (name in ("index", "index_put_", "index_put") and masks):
                self._device.wait(name)
            for x in tree_leaves(out):
                if isinstance(x, Tensor):
                    self._device.take(x)
        return out


def _caller() -> str:
    """Name the function that waited: ours if one is among the last, else the library's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        for package in ("selfaug", "transformers", "accelerate", "trl", "peft"):
            if package in parts and "tests" not in parts:
                return f"{'/'.join(parts[parts.index(package) :])}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


class Window(TrainerCallback):  # type: ignore[misc]
    """Calls a function with whether a step is counted: from the end of the first one to the end of the last."""

    def __init__(self, count: Callable[[bool], None]) -> None:
        self._count = count

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._count(1 <= state.global_step <= STEPS)


def trainer(folder: Path, **settings: Any) -> SelfAugTrainer:
    """A trainer of some steps of two micro-batches, none of which logs."""
    rows = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in SEQUENCES["single-turn"]] * 4
    args = SelfAugConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": STEPS + 1,
            "max_length": None if settings.get("padding_free") else 256,
            "learning_rate": 1e-2,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1000,
            "report_to": [],
            "disable_tqdm": True,
            **settings,
        }
    )
    args.dataloader_pin_memory = True  # as with a GPU; transformers turns it off for a CPU
    return SelfAugTrainer(
        tiny("llama", dtype=torch.float32),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=lora_config("llama"),
    )


def waits_per_step(folder: Path, **settings: Any) -> dict[str, float]:
    """Train on the played device, and return the waits a step by who waited."""
    made = trainer(folder, use_cpu=True, **settings)
    device = Device()
    for tensor in (*made.model.parameters(), *made.model.buffers()):
        device.take(tensor)

    def count(counted: bool) -> None:
        device.counting = counted

    made.add_callback(Window(count))
    with device.played():
        made.train()
    assert made.state.global_step == STEPS + 1
    return {where: waits / STEPS for where, waits in sorted(device.waits.items())}
