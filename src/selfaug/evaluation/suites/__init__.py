"""Suites of general tasks: each is a YAML file beside this one, whose `docs` name what it pins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError, nearest
from selfaug.common.files import missing_path

__all__ = ["SUITES", "GeneralTask", "chosen", "suite"]

_FOLDER = Path(__file__).parent
SUITES = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


@dataclass(frozen=True)
class GeneralTask:
    """One lm_eval task and everything that its number depends on.

    Args:
        task: lm_eval's name of a task or group.
        data: A local file in the task's own columns, instead of the hub's data set.
        num_fewshot: Examples before the question; ``None`` as the task says.
        chat_template: ``auto`` where the tokenizer has one, else ``True`` or ``False``.
        fewshot_as_multiturn: Examples as turns of a conversation (with a chat template).
        generation: Instead of the task's generation settings.
        limit: Only the first items of each (sub)task.
        primary: The metric that stands for the task; ``None`` takes the first of a list of usual ones.
        suite: Where this comes from, if from a suite.
    """

    task: str
    data: Path | None = None
    num_fewshot: int | None = None
    chat_template: str | bool = "auto"
    fewshot_as_multiturn: bool = True
    generation: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    primary: str | None = None
    suite: str | None = None

    def settings(self) -> dict[str, Any]:
        """As JSON, for the results."""
        row = dataclasses.asdict(self)
        return {**row, "data": None if self.data is None else str(self.data), "generation": dict(self.generation)}


def suite(name: str) -> list[GeneralTask]:
    """The tasks of a suite in the order of its file."""
    import yaml

    body = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return [GeneralTask(task=task, suite=name, **settings) for task, settings in body["tasks"].items()]


def chosen(
    words: Sequence[str], known: Mapping[str, Sequence[str]], *, limit: int | None, max_gen_toks: int | None
) -> list[GeneralTask]:
    """The tasks that ``--general`` names: suites, tasks, groups, tags, or ``NAME=FILE``; each once.

    Args:
        words: What the user wrote.
        known: lm_eval's names, each with the names that it stands for (a tag's tasks; else itself).
        limit: Instead of the suites' own.
        max_gen_toks: Instead of the suites' and tasks' own.

    Raises:
        ConfigError: For a name that is not known, or a file that does not exist.
    """
    found: dict[str, GeneralTask] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if name in SUITES and not equals:
            tasks = suite(name)
        else:
            if name not in known:
                raise ConfigError(
                    f"general task {name!r} is not known.{nearest(name, [*SUITES, *known])}",
                    f"give a suite ({', '.join(SUITES)}), a task of lm_eval (`lm-eval ls tasks` lists them), or "
                    "NAME=FILE for a task on a file of this machine; --include_path adds a folder of task YAMLs.",
                )
            tasks = [GeneralTask(each, data=_data(name, file) if equals else None) for each in known[name]]
        for task in tasks:
            changes: dict[str, Any] = {} if limit is None else {"limit": limit}
            if max_gen_toks is not None:
                changes["generation"] = {**task.generation, "max_gen_toks": max_gen_toks}
            # A task named on its own after a suite that has it keeps the suite's settings and gets its file.
            if task.task in found and task.suite is None:
                task = dataclasses.replace(found[task.task], data=task.data)
            found[task.task] = dataclasses.replace(task, **changes)
    return list(found.values())


def _data(name: str, file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        hint = "give NAME=FILE with a JSONL file in the task's own columns."
        raise missing_path(f"general: task {name}: the file", file, hint)
    return path.resolve()
