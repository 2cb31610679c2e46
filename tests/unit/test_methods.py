"""Which methods are there, what do they say of themselves, and what is refused before anything is loaded?"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from selfaug.common.errors import ConfigError, DataError
from selfaug.methods import METHODS, get_method
from selfaug.methods.base import Changes, merged
from selfaug.methods.options import paths_in, read_options
from selfaug.objective import NLL
from selfaug.training.config import SelfAugConfig

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")


def config(**given: Any) -> SelfAugConfig:
    return SelfAugConfig(**{"output_dir": "unused", "bf16": False, "report_to": "none", **given})


def refused(**given: Any) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        config(**given)
    assert error.value.hint.endswith(".")
    return error.value


def test_replay_says_what_it_needs(tmp_path: Path) -> None:
    assert "none is given" in refused(method="replay").message
    assert "none is given" in refused(method="selfaug+replay").message
    (tmp_path / "general.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"Did you mean 'general.jsonl'"):
        config(method="replay", method_options={"replay_data": str(tmp_path / "generl.jsonl")})
    made = config(method="replay", method_options={"replay_data": str(tmp_path / "general.jsonl")})
    options = made.method_options
    assert isinstance(options, dict)
    assert paths_in([METHODS["replay"].Options], options) == {"replay_data": (tmp_path / "general.jsonl").resolve()}
    assert config(method="replay", method_options="replay_ratio=0").method_options is not None


@pytest.mark.parametrize("name", METHODS)
def test_a_method_explains_itself(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.summary
    assert method.formula
    assert type(method).__doc__
    for field in dataclasses.fields(method.Options):
        assert field.metadata["help"].endswith("."), field.name
    assert method.strength in ("", "alpha", *(field.name for field in dataclasses.fields(method.Options)))


def test_no_two_methods_that_combine_share_an_option() -> None:
    """They would not be told apart in a combination; `token` in a name would keep it out of the saved settings."""
    own = {field.name for field in dataclasses.fields(SelfAugConfig)}
    options = {name: {field.name for field in dataclasses.fields(method.Options)} for name, method in METHODS.items()}
    for name, other in itertools.combinations(METHODS, 2):
        assert METHODS[name].decides & METHODS[other].decides or not options[name] & options[other]
    for names in options.values():
        assert not names & own
        assert not [name for name in names if "token" in name]


@pytest.mark.parametrize(
    ("given", "near"),
    [("selfaugg", "selfaug"), ("kl-respons", "kl-response"), ("selfaug+dtf", "dft"), ("aeft", "eaft")],
)
def test_an_unknown_method_names_the_near_one(given: str, near: str) -> None:
    error = refused(method=given)
    assert f"Did you mean {near!r}?" in error.message
    assert near in error.hint


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("kl-response", {"bata": 1}, "Did you mean 'beta'?"),
        ("sft", {"beta": 1}, "'beta' is not an option of method='sft'"),
        ("kl-response", {"beta": -1}, "beta=-1.0 of method='kl-response' is out of range"),
        ("kl-response", {"beta": float("nan")}, "out of range"),
        ("kl-response", {"beta": "much"}, "beta='much' of method='kl-response' is not of type float"),
        ("kl-response", {"beta": True}, "not of type float"),
        ("eaft", {"top": 2.5}, "not of type int"),
        ("eaft", {"top": 1}, "out of range"),
        ("talr", {"tau": -1}, "out of range"),
        ("talr", {"floor": 1.5}, "out of range"),
        ("dft", "power", "not of the form name=value"),
        ("dft", "{power: 1", "no JSON object"),
        ("dft", 3, "not a mapping"),
    ],
)
def test_an_option_that_cannot_work_is_refused(method: str, options: Any, said: str) -> None:
    assert said in refused(method=method, method_options=options).message


def test_options_are_read_from_pairs_json_and_mappings() -> None:
    expected = {"tau": 1e-3, "floor": 0.5}
    for given in ("tau=1e-3, floor=0.5", '{"tau": 0.001, "floor": 0.5}', expected):
        assert config(method="talr", method_options=given).method_options == expected
    assert config(method="talr").method_options == {"tau": 0.0, "floor": 0.01}
    assert config(method="talr+selfaug", method_options="tau=2").method_options == {"tau": 2.0, "floor": 0.01}
    assert config(method="sft").method_options is None
    assert read_options("a=1,b=text") == {"a": 1, "b": "text"}


def test_a_config_with_options_survives_a_round_trip(tmp_path: Path) -> None:
    made = config(method="selfaug+asft", method_options="anchor=0.2", alpha=0.25, output_dir=str(tmp_path))
    again = SelfAugConfig(**{f.name: getattr(made, f.name) for f in dataclasses.fields(SelfAugConfig) if f.init})
    assert (again.alpha, again.method_options) == (0.25, {"anchor": 0.2})


def test_parts_that_contradict_each_other_are_refused() -> None:
    assert "fine-tuned already" in refused(method="anchored").message
    assert "not with the base" in refused(method="selfaug+anchored", reference="sft").message
    assert config(method="selfaug+anchored", reference="sft", alpha=0).compares
    for pair in ("dft+eaft", "asft+dft", "talr+eaft"):
        error = refused(method=pair)
        assert all(repr(part) in error.message for part in pair.split("+"))
        assert "the loss of response tokens" in error.message
    assert "the KL on response tokens" in refused(method="asft+kl-response").message.replace("the loss", "")
    assert "acts on a LoRA adapter" in refused(method="full+wise-ft").message
    assert "twice" in refused(method="dft+dft").message


def test_a_combination_has_the_changes_of_its_parts() -> None:
    made = config(method="dft+selfaug", alpha=0.5)
    where = [(term.term.name, term.where, term.weight) for term in get_method("dft+selfaug").changes(made).terms]
    assert where == [("dft", "response", 1.0), ("alignment", "aligned", 0.5)]
    assert config(method="selfaug+dft").alpha == 2.0
    assert (made.aligns, made.compares_response, made.compares) == (True, False, True)
    held = config(method="kl-response")
    assert (held.aligns, held.compares_response, held.compares) == (False, True, True)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "selfaug"])
def test_an_alpha_without_effect_is_refused(name: str) -> None:
    assert "has no effect" in refused(method=name, alpha=0.5).message
    options = {"replay": "replay_ratio=0", "anchored": "anchor_share=0"}.get(name)
    reference = "initial" if METHODS[name].changes(config(method=name, method_options=options)).start else "base"
    made = config(method=f"selfaug+{name}", alpha=0.5, method_options=options, reference=reference)
    assert made.alpha == 0.5


def test_what_needs_no_reference_asks_for_none() -> None:
    for name in ("sft", "dft", "eaft", "talr"):
        made = config(method=name)
        assert not made.compares
        assert [term.where for term in get_method(name).changes(made).terms] == ["response"]
    assert get_method("sft").changes(config(method="sft")).terms[0].term == NLL()


# What each field of `Changes` is under two methods that both set it; a field that is missing here fails the test.
def _changes(which: int) -> Changes:
    value = {
        "response_term": (NLL(), None), "activation_term": ("a", None), "mix": ("m", None), "rewrite": ("r", None),
        "proximal": ("p", None), "rate": ("t", None), "adapter": ("o", None), "compose": ("c", None),
        "fisher": ("f", None), "start": ("s", None), "learning_rate_factor": (0.5, 0.1),
        "reweigh": (lambda nll_N: 2 * nll_N, lambda nll_N: nll_N + 1),
        "weigh": (lambda samples: lambda nll_N: 2 * nll_N, lambda samples: lambda nll_N: nll_N + 1),
        **{
            n: ((f"{n} 1",), (f"{n} 2",))
            for n in ("added_terms", "parameter_terms", "check_prompts", "constraints", "finish")
        },
    }  # fmt: skip
    assert value.keys() == {field.name for field in fields(Changes)}, "a field of Changes has no case here"
    return Changes(**{name: pair[which] for name, pair in value.items()})


@pytest.mark.parametrize("name", [field.name for field in fields(Changes)])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_no_field_of_the_changes_is_dropped(name: str, order: tuple[int, int]) -> None:
    parts = [_changes(which) for which in order]
    found = getattr(merged(parts), name)
    alone = [getattr(part, name) for part in parts]
    if name == "weigh":
        assert found([])(torch.tensor([3.0])).item() == 6.0 * 4.0
    elif name == "reweigh":
        assert found(torch.tensor([3.0])).item() == 6.0 * 4.0
    elif name == "learning_rate_factor":
        assert found == pytest.approx(0.05)
    elif isinstance(alone[0], tuple):
        assert found == alone[0] + alone[1]
    else:
        assert found == next(one for one in alone if one is not None)
    assert getattr(merged([Changes(), Changes()]), name) == getattr(Changes(), name)
