from __future__ import annotations

import pickle

import pytest

from selfaug import SelfAugConfig
from selfaug.common.redaction import is_secret, redacted, without_secrets

SECRET = [
    "hub_token", "token", "HF_TOKEN", "--hub-token", "api_key", "OPENAI_API_KEY", "judge_api_key", "password", "secret",
    "client_secret", "AWS_SECRET_ACCESS_KEY", "access_token", "db_password", "credentials", "push_to_hub_token",
]  # fmt: skip
PLAIN = [
    "max_new_tokens", "align_token_fraction", "eos_token", "pad_token", "bos_token", "num_tokens", "tokens",
    "tokenizer", "include_num_input_tokens_seen", "average_tokens_across_devices", "judge_key_env", "end_of_turn_token",
    "max_tokens", "tokens_per_second", "image_token", "trainable_token_indices", "key", "monkey", "generation_key_env",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET)
def test_credentials_are_known_by_name(name: str) -> None:
    assert is_secret(name)
    assert redacted({name: "open sesame"}) == {name: "***"}


@pytest.mark.parametrize("name", PLAIN)
def test_what_only_sounds_like_one_is_kept(name: str) -> None:
    assert not is_secret(name)
    assert redacted({name: "value", "inner": [{name: 3}]}) == {name: "value", "inner": [{name: 3}]}
    assert without_secrets([f"--{name}", "value"]) == [f"--{name}", "value"]


LOOKS = [
    ("hf_" + "a" * 34, "***"),
    ("key sk-proj-" + "b" * 30 + " was refused", "key *** was refused"),
    ("https://me:pass@host:80/v1?x=1", "https://***@host:80/v1?x=1"),
    ("https://host/v1?api_key=abc&seed=3", "https://host/v1?api_key=***&seed=3"),
    ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer ***"),
    ("ghp_" + "c" * 36, "***"),
]


@pytest.mark.parametrize(("text", "wanted"), LOOKS)
def test_credentials_are_known_by_their_looks(text: str, wanted: str) -> None:
    assert redacted(text) == wanted
    assert redacted({"a": [text]}) == {"a": [wanted]}


@pytest.mark.parametrize(
    "text", ["https://host/a@b", "me@host.org", "a:b@c", "sk-short", "hf_model", "/a/b?c=d&token_count=3"]
)
def test_other_texts_stay(text: str) -> None:
    assert redacted(text) == text


def test_the_pickled_settings_of_a_checkpoint_hold_none(tmp_path: object) -> None:
    secret = "hf_" + "d" * 30
    config = SelfAugConfig(str(tmp_path), hub_token=secret, eos_token="</s>", report_to="none")
    assert config.hub_token == secret
    kept = pickle.dumps(config)
    assert secret.encode() not in kept
    assert pickle.loads(kept).eos_token == "</s>"
