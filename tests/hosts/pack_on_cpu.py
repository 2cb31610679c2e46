"""Plugin of ms-swift for its tests: packing without flash attention, which ms-swift asks for and a CPU lacks."""

from __future__ import annotations

from typing import Any

from swift.arguments import SftArguments


def _check_padding_free(self: Any) -> None:
    self.padding_free = self.padding_free or self.packing


SftArguments._check_padding_free = _check_padding_free
