"""The lab's world: nothing is shared between training and tests, and everything is a function of its seed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from selfaug.common.errors import ConfigError
from selfaug.data.read import read_rows
from selfaug.data.record import Record
from selfaug.lab.curriculum import STAGES, sample_texts
from selfaug.lab.task import Distance, rows
from selfaug.lab.words import KINDS, Part, in_test, names
from selfaug.lab.world import RELATIONS, World

WORLD = World.make()


def test_each_name_is_in_one_part_and_a_fifth_is_kept() -> None:
    for kind, (beginnings, endings) in KINDS.items():
        train, test = set(names(kind, "train")), set(names(kind, "test"))
        assert not train & test
        assert len(train | test) == len(beginnings) * len(endings)
        assert 0.1 < len(test) / len(train | test) < 0.35, kind


def test_the_world_is_a_function_of_its_seed() -> None:
    assert World.make() == WORLD
    assert World.make(1) != WORLD
    assert all(set(land.facts) == set(RELATIONS) for land in WORLD.lands)
    with pytest.raises(ValueError, match="lands=1000"):
        World.make(lands=1000)


def test_what_the_base_reads_holds_no_entity_of_the_tests() -> None:
    kept = {name for kind in KINDS for name in names(kind, "test")}
    seen = set(re.findall(r"[A-Za-z]+", " ".join(sample_texts(WORLD, 3000, seed=5))))
    assert seen & {name for kind in KINDS for name in names(kind, "train")}
    assert not seen & kept


def test_what_the_base_reads_knows_neither_documents_nor_the_tasks_lands() -> None:
    texts = " ".join(sample_texts(WORLD, 3000, seed=6))
    assert "[1]" not in texts
    assert not set(re.findall(r"[A-Za-z]+", texts)) & {*WORLD.unknown("train"), *WORLD.unknown("test")}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    "distance",
    [
        Distance(),
        Distance(documents=1, outdated=1.0),
        Distance(documents=12, known=1.0, outdated=0.5),
        Distance(documents=20, sentences=8, told=5, terse=False, unanswerable=1.0),
    ],
)
def test_a_row_of_the_task(part: Part, distance: Distance) -> None:
    known = {land.name for land in WORLD.lands}
    for row in rows(part, 60, WORLD, distance):
        assert len(row["documents"]) == distance.documents
        titles = [document["title"] for document in row["documents"]]
        assert len(set(titles)) == len(titles)
        asked = re.search(r"the (\w+) of (\w+)", row["question"])
        assert asked is not None
        relation, land = asked.groups()
        assert in_test(land) == (part == "test")
        for title in titles:
            assert title in known or in_test(title.split()[0]) == (part == "test")
        told = re.findall(rf"The {relation} of {land} is (\w+)\.", " ".join(d["text"] for d in row["documents"]))
        if row.get("answerable") is False:
            assert told == []
            continue
        if len(told) == 2:  # an old document contradicts the new one
            new = next(d["text"] for d in row["documents"] if d["title"] == f"{land} (new)")
            assert told[0] != told[1]
            told = re.findall(rf"The {relation} of {land} is (\w+)\.", new)
        assert told == [row["answer"][0] if distance.terse else row["answer"][1]]


def test_rows_are_records_and_a_function_of_their_arguments(tmp_path: Path) -> None:
    made = rows("train", 50, WORLD)
    assert made == rows("train", 50, WORLD)
    assert made != rows("train", 50, WORLD, seed=1)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    loaded = read_rows(path)
    assert not loaded.problems
    assert all(isinstance(item, Record) for item in loaded.items)
    assert len(loaded.items) == 50


def test_unanswerable_and_outdated_rows_come_at_their_shares() -> None:
    made = rows("train", 1000, WORLD, Distance(unanswerable=0.3, outdated=0.5))
    unanswerable = sum(row.get("answerable") is False for row in made)
    outdated = sum(any(d["title"].endswith("(old)") for d in row["documents"]) for row in made)
    assert abs(unanswerable - 300) < 5 * (1000 * 0.3 * 0.7) ** 0.5
    assert abs(outdated - 350) < 5 * (1000 * 0.35 * 0.65) ** 0.5


@pytest.mark.parametrize(
    ("settings", "says"), [({"documents": 0}, "documents=0"), ({"told": 6}, "told=6"), ({"known": 1.5}, "known=1.5")]
)
def test_a_distance_out_of_range_is_refused(settings: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Distance(**settings)  # type: ignore[arg-type]


def test_the_stages_fill_the_training() -> None:
    assert sum(stage.share for stage in STAGES) == pytest.approx(1)
