"""Does the report draw the probe of general ability, its interval and its limit?"""

from __future__ import annotations

import json
from pathlib import Path

from selfaug.report import figures
from selfaug.report.facts import report_of
from tests.made_runs import whole_run


def test_the_probe_is_drawn_with_its_limit_where_there_is_one(tmp_path: Path) -> None:
    for name, settings in (("limited", {"probe_limit": 0.1}), ("watched", {}), ("unprobed", {})):
        run = whole_run(tmp_path / name, **settings)
        if name != "unprobed":
            events = [
                {"step": step, "probe_kl": 0.03 * step, "probe_kl_low": 0.02 * step, "probe_kl_high": 0.05 * step}
                for step in (0, 2, 4)
            ]
            with (run / "log.jsonl").open("a") as file:
                file.writelines(json.dumps(event) + "\n" for event in events)
    drawn = {}
    for name in ("limited", "watched", "unprobed"):
        report = report_of([str(tmp_path / name)])
        drawn[name] = {picture.title: picture.svg for picture in figures.training(report)}
        training = report.runs[0].training
        assert training is not None
        if name != "unprobed":
            assert training.curves["probe_kl"].values == (0.0, 0.06, 0.12)
    assert "Probe of general ability" not in drawn["unprobed"]
    limited, watched = (drawn[name]["Probe of general ability"] for name in ("limited", "watched"))
    assert "FillBetween" in watched or "PolyCollection" in watched, "the interval is not drawn"
    assert limited.count("stroke-dasharray") == watched.count("stroke-dasharray") + 1
