"""`replay`: mixes general data of the user into the training rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from selfaug.common.errors import ConfigError
from selfaug.data.files import data_files
from selfaug.methods.base import MIXED_ROWS, Changes, Method
from selfaug.methods.options import option
from selfaug.methods.requests import Mix

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["Replay"]


class Replay(Method):
    """``loss = Σ nll / n_response`` over the training rows and ``round(replay_ratio · rows)`` general ones.

    The rows are drawn once without replacement, by the run's seed. An epoch then has more steps of the same cost.
    Unlike the other methods, it needs data that represents what the model should keep.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `replay`."""

        replay_data: str | None = option(
            None, "File or folder of general data, in any format of `--format`.", path=True
        )
        replay_ratio: float = option(0.1, "General rows for each training row; 0 is plain fine-tuning.", least=0.0)

    name: ClassVar[str] = "replay"
    summary: ClassVar[str] = "general data of the user's own mixed in"
    formula: ClassVar[str] = "NLL on training rows and replay_ratio as many general rows"
    source: ClassVar[str] = "control"
    needs: ClassVar[str] = "general data"
    strength: ClassVar[str] = "replay_ratio"
    decides: ClassVar[frozenset[str]] = frozenset({MIXED_ROWS})

    def check(self, config: SelfAugConfig) -> None:
        """Raise if the general data is missing."""
        options = self.options(config)
        if not options.replay_ratio:
            return
        if options.replay_data is None:
            raise ConfigError(
                "method='replay' mixes in general data, and none is given.",
                "name it with --method_options replay_data=FILE (JSONL of messages, records, or prompt/completion).",
            )
        data_files(Path(options.replay_data))

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the general data, if the ratio is above 0."""
        options = self.options(config)
        return Changes(mix=Mix(Path(options.replay_data), options.replay_ratio) if options.replay_ratio else None)
