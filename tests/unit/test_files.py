"""Does every reader of a user's file say what is wrong with it, and is a file written whole or not at all?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from selfaug.cli.encoding import _chat_template
from selfaug.common.errors import ConfigError, DataError, UserError
from selfaug.common.files import json_lines, json_of_ours, read_json, read_text, read_yaml, replacing, whole_lines
from selfaug.data.corpus_files import read_passages
from selfaug.data.forms import read_forms
from selfaug.data.prompt_files import SETTINGS, load
from selfaug.evaluation.choices import check_file
from selfaug.evaluation.results import read_results, read_samples
from selfaug.evaluation.text import read_texts
from selfaug.report.shifts import read_shift
from selfaug.run.folder import RunFolder
from selfaug.run.manifest import read_manifest


@dataclass(frozen=True)
class Reader:
    """A reader of a user's file.

    Args:
        name: The file's name.
        read: It, given the file.
        good: Content that it takes; ``None`` where a file that is whole says more than fits here.
        bad: Content that is not in its format from line 2 on; ``None`` where every text is.
        optional: Whether a file that is not there is none.
    """

    name: str
    read: Callable[[Path], Any]
    good: str | None
    bad: str | None
    optional: bool = False


BAD_JSON, BAD_YAML = '{"é":\n nothing}', "é: 1\n b: [2\n"
READERS = {
    "read_text": Reader("a.txt", read_text, "é", None),
    "read_json": Reader("a.json", read_json, '{"é": 1}', BAD_JSON),
    "read_yaml": Reader("a.yaml", read_yaml, "é: 1", BAD_YAML),
    "json_lines": Reader("a.jsonl", lambda path: list(json_lines(path)), '{"é": 1}\n', '{"é": 1}\n{"b":\n'),
    "texts": Reader("a.txt", read_texts, "é", None),
    "a list of texts": Reader("a.json", read_texts, '["é"]', BAD_JSON),
    "rows of texts": Reader("a.jsonl", read_texts, '{"text": "é"}\n', '{"text": "é"}\n{"b":\n'),
    "passages": Reader("a.md", lambda path: list(read_passages(path)), "é", None),
    "forms": Reader("a.yaml", lambda path: replace(read_forms(str(path)), source={}), "xx: [é]", BAD_YAML),
    "questions": Reader("a.jsonl", lambda path: check_file("any", path), '{"é": 1}\n', '{"é": 1}\n{"b":\n'),
    "a chat template": Reader("a.jinja", lambda path: _chat_template(str(path), None), "é", None),  # type: ignore[arg-type]
    "the prompt's settings": Reader(SETTINGS, lambda path: load(path.parent), None, BAD_JSON),
    "settings": Reader("config.yaml", lambda path: RunFolder(path.parent).read_config(), "é: 1", BAD_YAML),
    "a manifest": Reader("manifest.json", read_manifest, '{"schema": 1, "é": 1}', BAD_JSON),
    "results": Reader("results.json", read_results, None, BAD_JSON),
    "samples": Reader("samples.jsonl", lambda path: list(read_samples(path)), '{"é": 1}\n', '{"é": 1}\n{"b":\n'),
    "shift": Reader("shift.json", lambda path: read_shift(RunFolder(path.parent)), None, BAD_JSON, optional=True),
}  # fmt: skip
KINDS = (ConfigError, DataError)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_says_what_is_wrong(tmp_path: Path, name: str) -> None:
    reader = READERS[name]
    path = tmp_path / reader.name

    def said() -> str:
        with pytest.raises(KINDS) as caught:
            reader.read(path)
        assert caught.value.hint
        assert reader.name in caught.value.message
        return caught.value.message

    if reader.optional:
        assert reader.read(path) is None
    else:
        assert any(words in said() for words in ("does not exist", "no such file", "holds no"))
    path.mkdir()
    if name not in ("passages", "a chat template"):  # a folder of passages, or of a tokenizer, is another thing
        assert "folder" in said()
    path.rmdir()
    path.write_bytes((reader.good or reader.bad or "é").encode("latin-1"))
    assert "line 1, cannot be read: byte 0xe9 is not UTF-8" in said()
    if reader.bad is not None:
        path.write_text(reader.bad, encoding="utf-8")
        assert "line 2" in said()
    if reader.good is not None:
        path.write_text(reader.good, encoding="utf-8")
        plain = reader.read(path)
        path.write_text(reader.good, encoding="utf-8-sig")
        assert reader.read(path) == plain
    if os.geteuid() != 0:
        path.chmod(0)
        assert "Permission denied" in said()


def test_the_near_name_or_what_of_the_path_there_is_stands_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").touch()
    with pytest.raises(DataError, match=r"Did you mean 'stories.txt'\?"):
        read_text(tmp_path / "storys.txt")
    with pytest.raises(DataError, match="of its path only"):
        read_text(tmp_path / "none" / "stories.txt")
    with pytest.raises(DataError, match="does not exist"):
        read_text(tmp_path / "stories.txt" / "inside")


def test_line_ends_are_line_feeds_and_a_separator_inside_a_text_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\r\nb\rc\n")
    assert read_text(path) == "a\nb\nc\n"
    path.write_text('{"a": "b\u2028c"}\n\n{"a": 2}', encoding="utf-8")
    assert list(json_lines(path)) == [(1, {"a": "b\u2028c"}), (3, {"a": 2})]


def test_a_date_that_there_is_not_and_nesting_without_end_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("day: 2024-13-41")
    with pytest.raises(ConfigError, match="cannot be read: month must be"):
        read_yaml(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        read_json(path)


def test_of_our_own_files_what_is_damaged_counts_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert json_of_ours(path) is None
    assert list(whole_lines(path)) == []
    for raw in (b"", b"\xff", b'{"a": '):
        path.write_bytes(raw)
        assert json_of_ours(path) is None
        path.write_bytes(b'{"a": 1}\n[2]\n' + raw)
        assert list(whole_lines(path)) == [{"a": 1}]
    path.write_text(json.dumps({"a": 1}))
    assert json_of_ours(path) == {"a": 1}


@pytest.mark.parametrize("shared", [False, True])
def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "a.bin"
    with replacing(path, shared=shared) as temporary:
        assert (str(os.getpid()) in temporary.name) == shared
        temporary.write_bytes(b"old")
        assert not path.exists()

    def stop() -> None:
        with replacing(path, shared=shared) as temporary:
            temporary.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_is_of_the_kind_that_was_asked_for(tmp_path: Path) -> None:
    for kind in (ConfigError, DataError, UserError):
        with pytest.raises(UserError) as caught:
            read_json(tmp_path / "a", "--setting", hint="mend it so.", error=kind)
        assert type(caught.value) is kind
        assert caught.value.message.startswith("--setting ")
        assert caught.value.hint == "mend it so."
