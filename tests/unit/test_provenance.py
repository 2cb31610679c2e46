from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfaug.common import fingerprint, weights
from selfaug.common.errors import ConfigError
from selfaug.common.redaction import without_secrets
from selfaug.run import manifest as provenance


def write_safetensors(path: Path, **tensors: object) -> Path:
    import torch
    from safetensors.torch import save_file

    save_file({name: torch.tensor(values) for name, values in tensors.items()}, path)
    return path


def test_a_file_hash_is_sha256_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\0\xff" * 1000)
    expected = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert fingerprint.file_hash(path) == expected
    assert fingerprint.files_of([path]) == [{"path": str(path), "bytes": 2000, "hash": expected}]


@pytest.mark.parametrize("full", [False, True])
def test_the_weights_hash_follows_content_names_and_sizes_but_not_the_folder(tmp_path: Path, full: bool) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_safetensors(tmp_path / folder / "model.safetensors", weight=[1.0, 2.0], other=[3.0])
    first = tmp_path / "one" / "model.safetensors"
    second = tmp_path / "two" / "model.safetensors"
    known = weights.weights_hash([first], full=full)
    assert known.startswith("sha256:" if full else "sampled-sha256:")
    assert weights.weights_hash([second], full=full) == known
    write_safetensors(second, weight=[1.0, 2.5], other=[3.0])
    assert weights.weights_hash([second], full=full) != known
    write_safetensors(second, weight=[1.0, 2.0], another=[3.0])
    assert weights.weights_hash([second], full=full) != known
    renamed = second.rename(second.with_name("other.safetensors"))
    both = weights.weights_hash([first, renamed], full=full)
    assert weights.weights_hash([renamed, first], full=full) == both


def test_the_sampled_hash_sees_the_first_and_last_bytes_and_the_full_one_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    content = bytearray(64 * 4096 * 4)
    path.write_bytes(content)
    sampled, full = (weights.weights_hash([path], full=choice) for choice in (False, True))
    for place in (0, len(content) - 1):
        changed = bytearray(content)
        changed[place] = 1
        path.write_bytes(changed)
        assert weights.weights_hash([path]) != sampled
    changed = bytearray(content)
    changed[4096 + 5000] = 1  # between the first two sampled blocks
    path.write_bytes(changed)
    assert weights.weights_hash([path]) == sampled
    assert weights.weights_hash([path], full=True) != full


def test_weight_files_prefer_safetensors(tmp_path: Path) -> None:
    assert weights.weight_files(tmp_path) == []
    (tmp_path / "pytorch_model.bin").touch()
    assert [path.name for path in weights.weight_files(tmp_path)] == ["pytorch_model.bin"]
    (tmp_path / "model.safetensors").touch()
    assert [path.name for path in weights.weight_files(tmp_path)] == ["model.safetensors"]


def tokenizer(text: str = "a b c") -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.train_from_iterator([text], trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<unk>")


def test_the_tokenizer_hash_follows_the_vocabulary_and_not_the_last_call() -> None:
    one, same, other = tokenizer(), tokenizer(), tokenizer("a b d")
    known = fingerprint.tokenizer_hash(one)  # type: ignore[arg-type]
    assert fingerprint.tokenizer_hash(same) == known  # type: ignore[arg-type]
    assert fingerprint.tokenizer_hash(other) != known  # type: ignore[arg-type]
    before = one.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    one(["a b c a", "a"], padding=True, truncation=True, max_length=3)  # type: ignore[operator]
    assert one.backend_tokenizer.to_str() != before  # type: ignore[attr-defined]
    assert fingerprint.tokenizer_hash(one) == known  # type: ignore[arg-type]
    one.bos_token = "a"  # type: ignore[attr-defined]
    assert fingerprint.tokenizer_hash(one) != known  # type: ignore[arg-type]


def test_the_config_hash_ignores_order_alone() -> None:
    assert provenance.config_hash({"a": 1, "b": [2]}) == provenance.config_hash({"b": [2], "a": 1})
    assert provenance.config_hash({"a": 1}) != provenance.config_hash({"a": 2})


def test_secrets_leave_the_command_line() -> None:
    words = ["train", "--hub_token", "S1", "--hub-token=S2", "--eos_token", "</s>", "--seed", "3", "--api_key", "S3"]
    kept = without_secrets(words)
    assert not {"S1", "S2", "S3"} & set(" ".join(kept).replace("=", " ").split())
    assert kept[5:8] == ["</s>", "--seed", "3"] or "</s>" in kept
    assert len(kept) == len(words)


KEYS = st.sampled_from(["a", "b", "cc"])
# No None: an entry that is null and one that is absent say the same.
JSON = st.recursive(
    st.booleans() | st.integers(0, 3) | st.sampled_from(["", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=6,
)
MANIFESTS = st.dictionaries(KEYS, JSON, max_size=3)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MANIFESTS, MANIFESTS)
def test_differences_are_empty_exactly_where_manifests_are_equal(one: dict, other: dict) -> None:
    assert provenance.differences(one, one) == {}
    assert (provenance.differences(one, other) == {}) is (one == other)


def test_differences_name_the_leaf_and_leave_out_what_always_differs() -> None:
    one = {"created": "1", "device": {"x": 1}, "data": {"train": {"files": [{"hash": "a"}]}}}
    other = {"created": "2", "device": {"x": 2}, "data": {"train": {"files": [{"hash": "b"}]}}}
    assert provenance.differences(one, other) == {"data.train.files.0.hash": ("a", "b")}


def test_a_manifest_is_read_back_and_another_schema_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    provenance.write_manifest(path, {"schema": 1, "name": "ü"})
    assert provenance.read_manifest(path) == {"schema": 1, "name": "ü"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]
    for text in ("{", json.dumps({"schema": 99}), "[]"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"manifest\.json"):
            provenance.read_manifest(path)
    with pytest.raises(ConfigError):
        provenance.read_manifest(tmp_path / "none.json")


def test_git_state_is_the_repository_of_the_folder(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").write_text("1")
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    state = provenance.git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["changed"] is False
    (tmp_path / "a").write_text("2")
    assert provenance.git_state(tmp_path) == {"commit": state["commit"], "changed": True}


def test_versions_name_what_is_installed() -> None:
    found = fingerprint.versions()
    assert {"python", "selfaug", "torch", "trl"} <= found.keys()
    assert all(found[name] for name in ("python", "selfaug", "torch"))
