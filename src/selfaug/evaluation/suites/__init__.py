"""Suites of general tasks: one YAML file beside this one for each, whose `docs` name the settings that it fixes."""

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
    """One lm_eval task and all settings that its score depends on.

    Args:
        task: lm_eval's name of a task or group.
        data: Local file with the task's own columns, in place of the hub's data set.
        num_fewshot: Number of examples before the question; ``None`` for the task's own.
        chat_template: Whether the chat template is applied: ``True``, ``False``, or ``auto`` for where there is one.
        fewshot_as_multiturn: Whether examples are turns of a conversation (with a chat template).
        generation: Generation settings that replace the task's.
        limit: Number of items of each (sub)task, from the first; ``None`` for all.
        primary: Metric that represents the task; ``None`` for the first of a list of common ones.
        suite: Name of the suite that it comes from; ``None`` for a task named on its own.
        items: Places of the items to run, in ascending order, one or more of each (sub)task; ``None`` for all.
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
    items: Mapping[str, Sequence[int]] | None = None

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON, for the results."""
        row = dataclasses.asdict(self)
        if self.items is None:
            del row["items"]  # what was stored before there was a choice stays valid
        return {**row, "data": None if self.data is None else str(self.data), "generation": dict(self.generation)}


def suite(name: str) -> list[GeneralTask]:
    """Return the tasks of a suite in the order of its file."""
    import yaml

    body = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return [GeneralTask(task=task, suite=name, **settings) for task, settings in body["tasks"].items()]


def chosen(
    words: Sequence[str], known: Mapping[str, Sequence[str]], *, limit: int | None, max_gen_toks: int | None
) -> list[GeneralTask]:
    """Return each task once that ``--general`` names: by suite, task, group, tag or ``NAME=FILE``.

    Args:
        words: Values of the option.
        known: lm_eval's names, each with the names that it expands to (the tasks of a tag; otherwise itself).
        limit: Number of items that replaces the suites' own.
        max_gen_toks: Longest generated answer in tokens, in place of the suites' and tasks' own.

    Raises:
        ConfigError: If a name is unknown, or a file does not exist.
    """
    tasks_by_name: dict[str, GeneralTask] = {}
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
            if task.task in tasks_by_name and task.suite is None:
                task = dataclasses.replace(tasks_by_name[task.task], data=task.data)
            tasks_by_name[task.task] = dataclasses.replace(task, **changes)
    return list(tasks_by_name.values())


def _data(name: str, file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        hint = "give NAME=FILE with a JSONL file in the task's own columns."
        raise missing_path(f"general: task {name}: the file", file, hint)
    return path.resolve()
