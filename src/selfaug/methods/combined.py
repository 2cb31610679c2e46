"""The combination `a+b` of methods: the merged changes of its parts, none of which decide the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from selfaug.common.errors import ConfigError
from selfaug.methods.base import Changes, Method, merged

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["Combined"]


class Combined(Method):
    """Several methods at once.

    Args:
        name: Names of the parts, joined by ``+``.
        parts: Methods, at least two.

    Raises:
        ConfigError: If a part is named twice, or two decide the same thing.
    """

    def __init__(self, name: str, parts: Sequence[Method]) -> None:
        self.name = name  # type: ignore[misc]
        self._parts = tuple(parts)
        self.defaults = {"alpha": max((part.defaults["alpha"] for part in parts), key=lambda a: float(str(a)))}  # type: ignore[misc]
        for one, other in combinations(self._parts, 2):
            if one.name == other.name:
                raise ConfigError(f"method={name!r} names {one.name!r} twice.", f"write {one.name!r} once.")
            for thing in sorted(one.decides & other.decides):
                raise ConfigError(
                    f"method={name!r}: both {one.name!r} and {other.name!r} decide {thing}, so one would undo the "
                    "other.",
                    f"keep one of {one.name!r} and {other.name!r}.",
                )
            kinds = {one.adapter, other.adapter} - {"any"}
            if len(kinds) > 1:
                needed = {"lora": "acts on a LoRA adapter", "osf": "trains OSF's", "none": "trains without any"}
                raise ConfigError(
                    f"method={name!r}: {one.name!r} {needed[one.adapter]}, and {other.name!r} {needed[other.adapter]}.",
                    f"keep one of {one.name!r} and {other.name!r}.",
                )

    @property
    def parts(self) -> Sequence[Method]:
        """The combined methods, in the given order."""
        return self._parts

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the merged changes of the parts."""
        return merged([part.changes(config) for part in self._parts])
