"""Tables of `datasets` whose rows stay as they are: no key of one row becomes a null in another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, Json

__all__ = ["trl_table"]


def trl_table(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Return a table of rows in one of TRL's formats, with messages, tools and template variables as JSON columns.

    Columns of objects would have the same keys in all rows: a call would get null for arguments of other calls.
    """
    columns: dict[str, list[Any]] = {name: [] for row in rows for name in row}
    for row in rows:
        for name, values in columns.items():
            value = row.get(name)
            values.append({} if value is None and name == "chat_template_kwargs" else value)
    inferred = {}
    for name, values in columns.items():
        first = next((value for value in values if value is not None), None)
        if isinstance(first, Mapping) or (isinstance(first, list) and isinstance(next(iter(first), None), Mapping)):
            # TRL also accepts JSON texts in place of lists of tools.
            columns[name] = [json.loads(value) if isinstance(value, str) else value for value in values]
            inferred[name] = Json()
    if not inferred:
        return Dataset.from_dict(columns)
    plain = Dataset.from_dict({name: values for name, values in columns.items() if name not in inferred} or {})
    return Dataset.from_dict(columns, features=Features({**plain.features, **inferred}))
