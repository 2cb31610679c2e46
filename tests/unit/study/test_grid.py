"""Every method gets as many settings, in its range, and names that tell runs apart."""

from __future__ import annotations

import dataclasses
import json

import pytest

from selfaug.common.errors import ConfigError
from selfaug.methods import METHODS, get_method
from selfaug.methods.options import resolve_options
from selfaug.study.grid import Study, further, strengths_of, swept


def study(**more: object) -> Study:
    given: dict[str, object] = {
        "methods": ("selfaug", "wise-ft"), "seeds": (0, 1), "settings": 3, "train": ("--max_steps", "1"),
        "evaluate": ("--data", "x"), "learning_rate": 1e-3, **more,
    }  # fmt: skip
    return Study(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_so_many_different_strengths_and_all_are_taken(method: str, count: int) -> None:
    found = strengths_of(method, count, 1e-3)
    assert len(set(found)) == len(found) == count
    option = swept(method)
    if option in ("alpha", "learning_rate"):
        assert min(found) > 0
        return
    classes = [part.Options for part in get_method(method).parts]
    for value in found:
        resolve_options(method, classes, {option: value})  # raises out of range


def test_the_default_is_among_them() -> None:
    assert 2.0 in strengths_of("selfaug", 3, 1e-3)
    assert 0.5 in strengths_of("wise-ft", 3, 1e-3)
    assert strengths_of("stm", 3, 1e-3) == [1.58, 2.5, 10.0]  # a perplexity of 1 leaves nothing to learn
    assert 1e-3 in strengths_of("sft", 3, 1e-3)
    assert strengths_of("selfaug", 3, 1e-3) == [0.5, 2.0, 8.0]
    assert swept("dft+selfaug") == "power"
    with pytest.raises(ConfigError, match="settings=0"):
        strengths_of("selfaug", 0, 1e-3)


def test_all_methods_with_all_seeds_and_plain_always() -> None:
    runs = study().runs()
    assert len(runs) == 2 * 3 * 3
    assert len({run.name for run in runs}) == len({run.train for run in runs}) == len(runs)
    assert {run.setting.method for run in runs} == {"sft", "selfaug", "wise-ft"}
    assert [run.seed for run in runs] == [0] * 9 + [1] * 9
    for run in runs:
        words = dict(zip(run.train[::2], run.train[1::2], strict=True))
        assert words["--seed"] == str(run.seed)
        assert words["--max_steps"] == "1"
        if run.setting.method == "wise-ft":
            assert json.loads(words["--method_options"]) == {"adapter_scale": run.setting.value}
        else:
            assert (
                float(words["--alpha" if run.setting.method == "selfaug" else "--learning_rate"]) == run.setting.value
            )


def test_a_grid_varies_all_but_the_yardstick() -> None:
    found = study(methods=("selfaug",), grid={"align_fraction": [1, 0.125]}, strengths={"selfaug": [2]}).points()
    assert [s.label for s in found if s.method == "selfaug"] == [
        "selfaug align_fraction=1 alpha=2",
        "selfaug align_fraction=0.125 alpha=2",
    ]
    assert all(s.also == () for s in found if s.method == "sft")
    both = study(methods=("sft", "selfaug"), settings=1, grid={"lora_r": [4, 16]}).points()
    assert [s.curve for s in both] == ["sft", "sft lora_r=4", "sft lora_r=16", "selfaug lora_r=4", "selfaug lora_r=16"]


def test_a_grid_names_values_as_they_are_typed() -> None:
    found = study(methods=("selfaug",), grid={"align_boundary": [True]}, strengths={"selfaug": [2]}).runs()
    assert {run.name for run in found if run.setting.method == "selfaug" and run.seed == 0} == {
        "selfaug_align_boundary=true_alpha=2_seed=0"
    }


def test_a_grid_of_models_or_data_sets_makes_worlds() -> None:
    grid = {"lora_r": [4, 16], "model_name_or_path": ["hub/a", "hub/b"]}
    found = study(methods=("selfaug",), settings=1, grid=grid).points()
    a, b = (("model_name_or_path", f"hub/{name}") for name in "ab")
    assert [(s.method, s.also, s.world) for s in found] == [
        ("sft", (a,), (a,)),
        ("sft", (b,), (b,)),
        *(("selfaug", (("lora_r", r), world), (world,)) for r in (4, 16) for world in (a, b)),
    ]
    also = study(methods=("sft", "selfaug"), settings=1, grid=grid).points()
    assert [s.also for s in also if s.method == "sft"] == [
        (a,), (b,), *((("lora_r", r), world) for r in (4, 16) for world in (a, b))
    ]  # fmt: skip
    shared = study(methods=("selfaug",), settings=1, grid=grid, shared={"model_name_or_path": "hub/a"}).runs()
    assert shared[0].name == "sft_learning_rate=0.001_seed=0"
    assert shared[1].name == "sft_model_name_or_path=hub-b_learning_rate=0.001_seed=0"


def test_a_value_that_all_runs_have_anyway_is_the_same_run() -> None:
    shared = {"num_train_epochs": 1.0, "align_fraction": 1.0}
    plain = study(methods=("selfaug",), settings=1, shared=shared)
    grid = {"num_train_epochs": [1, 2], "align_fraction": [1, 0.125]}
    other = study(methods=("sft", "selfaug"), settings=1, shared=shared, grid=grid)
    names = [run.name for run in other.runs() if run.seed == 0]
    assert names == [
        "sft_learning_rate=0.001_seed=0",
        "sft_learning_rate=0.001_seed=0",
        "sft_align_fraction=0.125_learning_rate=0.001_seed=0",
        "sft_num_train_epochs=2_learning_rate=0.001_seed=0",
        "sft_num_train_epochs=2_align_fraction=0.125_learning_rate=0.001_seed=0",
        "selfaug_alpha=2_seed=0",
        "selfaug_align_fraction=0.125_alpha=2_seed=0",
        "selfaug_num_train_epochs=2_alpha=2_seed=0",
        "selfaug_num_train_epochs=2_align_fraction=0.125_alpha=2_seed=0",
    ]
    assert other.runs()[1].setting.label == "sft num_train_epochs=1 align_fraction=1 learning_rate=0.001"
    trained = {run.name: run.train for run in other.runs()}
    assert len(set(trained.values())) == len(trained)
    for run in plain.runs():
        assert plain.fingerprints(run) == other.fingerprints(next(o for o in other.runs() if o.name == run.name))


def test_fingerprints_know_what_a_run_depends_on() -> None:
    one = study()
    run = one.runs()[0]
    same = study().fingerprints(study().runs()[0])
    assert one.fingerprints(run) == same
    measured = dataclasses.replace(one, evaluate=("--data", "y")).fingerprints(run)
    assert (measured["train"], measured["evaluate"] != same["evaluate"]) == (same["train"], True)
    trained = dataclasses.replace(run, train=(*run.train, "--warmup_steps", "2"))
    assert not set(one.fingerprints(trained).values()) & set(same.values())
    moved = dataclasses.replace(one, shift=("--layers", "false")).fingerprints(run)
    assert {name: moved[name] for name in same} == same
    assert set(moved) - set(same) == {"shift"}


def test_the_order_and_spelling_of_options_is_no_difference() -> None:
    def of(*words: str) -> dict[str, str]:
        one = study(train=words)
        return one.fingerprints(one.runs()[0])

    plain = of("--max_length", "64", "--lora_target_modules", "q_proj", "v_proj")
    assert of("--lora-target-modules", "q_proj", "v_proj", "--max_length=64") == plain
    assert of("--max_length", "32", "--lora_target_modules", "q_proj", "v_proj", "--max_length", "64") == plain
    for other in (
        ("--max_length", "64", "--lora_target_modules", "v_proj", "q_proj"),
        ("--max_length", "64", "--lora_target_modules", "q_proj"),
        ("--max_length", "6", "4", "--lora_target_modules", "q_proj", "v_proj"),
        ("--max_length", "64", "--lora_target_modules", "q_proj", "v_proj", "--packing"),
    ):
        assert of(*other)["train"] != plain["train"]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_further_strength_is_beyond_the_last_and_taken(method: str) -> None:
    values = sorted(v for v in strengths_of(method, 3, 1e-3) if v > 0)
    classes = [part.Options for part in get_method(method).parts]
    for last, up in ((values[-1], True), (values[0], False)):
        found = further(method, last, up=up)
        if found is None:
            continue
        assert found > last if up else 0 < found < last
        if swept(method) not in ("alpha", "learning_rate"):
            resolve_options(method, classes, {swept(method): found})  # raises out of range


def test_a_study_is_widened_at_the_end_where_its_best_lies_and_no_further_than_the_range() -> None:
    plain = study()
    wider = plain.widened({"selfaug": "highest", "sft": "lowest"})
    assert wider.values("selfaug") == [0.5, 2.0, 8.0, 32.0]
    assert wider.values("sft") == pytest.approx([*plain.values("sft"), 1e-4], rel=2e-3)  # rounded to three digits
    assert wider.values("wise-ft") == plain.values("wise-ft")
    assert {run.name for run in plain.runs()} < {run.name for run in wider.runs()}
    whole = study(strengths={"wise-ft": [0.5, 1.0]})
    assert whole.widened({"wise-ft": "highest"}).points() == whole.points()
    assert further("stm", 1.58, up=False) == pytest.approx(1.58**0.5, abs=0.01)  # towards 1, and never there
