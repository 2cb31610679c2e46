"""Are both sides of a run what base and run are, however its adapter was made, and is no model loaded needlessly?"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from selfaug.common.errors import ConfigError
from selfaug.run.models import Sides, check_origin
from tests.models import save_tiny
from tests.runs import finished_run

IDS = torch.tensor([[5, 9, 33, 21, 8]])
KINDS: dict[str, dict[str, Any]] = {"adapter": {}, "biased": {"bias": "lora_only"}, "whole": {"full": True}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


def tuned_of(folder: Path, model: Path) -> Tensor:
    if not (folder / "adapter_config.json").is_file():
        return logits(AutoModelForCausalLM.from_pretrained(folder).eval())
    base = AutoModelForCausalLM.from_pretrained(model)
    return logits(PeftModel.from_pretrained(base, str(folder)).eval())


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_are_what_base_and_run_are(kind: str, together: bool, model: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", model, **KINDS[kind])
    base = logits(AutoModelForCausalLM.from_pretrained(model).eval())
    final = run.finished
    assert final is not None
    tuned = tuned_of(final, model)
    assert (base - tuned).abs().max() > 1e-3
    sides = Sides(check_origin(run), together=together)
    assert sides.origin.switchable == (kind == "adapter")
    for name, wanted in (("tuned", tuned), ("base", base), ("tuned", tuned)):
        with sides.side(name) as side:
            torch.testing.assert_close(logits(side), wanted, rtol=0, atol=1e-6)
        assert sides.holds(name)
    assert sides.loads == (1 if kind == "adapter" else 2 if together else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_of_the_same_base_take_the_place_of_the_first(kind: str, model: Path, tmp_path: Path) -> None:
    first, second, third = (
        finished_run(tmp_path / str(seed), model, seed=seed, **KINDS[kind]).finished for seed in (1, 2, 3)
    )
    assert first is not None
    assert second is not None
    assert third is not None
    base = logits(AutoModelForCausalLM.from_pretrained(model).eval())
    sides = Sides(check_origin(finished_run(tmp_path / "run", model, seed=1, **KINDS[kind])), together=True)
    for folder in (first, second, third, third):
        sides.move(sides.origin.at(folder))
        wanted = tuned_of(folder, model)
        with sides.side("tuned") as tuned:
            torch.testing.assert_close(logits(tuned), wanted, rtol=0, atol=1e-6)
            reference = sides.reference()
            with reference.serving(tuned) as serving:
                torch.testing.assert_close(logits(serving), base, rtol=0, atol=1e-6)
            torch.testing.assert_close(logits(tuned), wanted, rtol=0, atol=1e-6)
    # An adapter that is switched off needs its base once, and a base of its own is loaded once.
    assert sides.loads == (1 if kind == "adapter" else 5)


def test_a_whole_model_is_opened_without_its_base_where_that_is_not_asked(model: Path, tmp_path: Path) -> None:
    gone = Path(shutil.copytree(model, tmp_path / "gone"))
    run = finished_run(tmp_path / "run", gone, full=True)
    wanted = tuned_of(run.model, gone)
    shutil.rmtree(gone)
    with pytest.raises(ConfigError, match="the base model of the run"):
        check_origin(run)
    origin = check_origin(run, needs_base=False)
    assert origin.context is not None
    with Sides(origin).side("tuned") as tuned:
        torch.testing.assert_close(logits(tuned), wanted, rtol=0, atol=1e-6)


def test_weights_that_do_not_fit_are_refused_as_they_take_the_place(model: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", model)
    sides = Sides(check_origin(run))
    with sides.side("tuned"):
        pass
    torn = Path(shutil.copytree(run.adapter, tmp_path / "torn"))
    file = torn / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="does not fit the base model"):
        sides.move(sides.origin.at(torn))
    file.unlink()
    with pytest.raises(ConfigError, match="no weights"):
        sides.origin.at(torn)


def test_an_end_of_turn_that_is_no_special_token_does_not_stand_in_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    from selfaug.cli.session import Session
    from selfaug.data.prompts import Renderer
    from selfaug.evaluation.task import Asked, answer
    from selfaug.generation import decoding

    model = save_tiny(tmp_path / "model")
    run = finished_run(tmp_path / "run", model)
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    renderer = Renderer.for_tokenizer(tokenizer)
    sides = Sides(check_origin(run))
    with sides.side("tuned") as tuned:
        likely = int(logits(tuned)[0, -1].argmax())
    assert likely not in tokenizer.all_special_ids
    monkeypatch.setattr(decoding, "stop_ids", lambda *_: [likely])
    prompt, out = IDS[0].tolist(), io.StringIO()
    session = Session(sides, tokenizer, renderer, None, max_new_tokens=4)
    assert session.reply(prompt, "tuned", out) == ""
    assert out.getvalue().strip() == ""
    asked: Any = Asked(0, None, (), "", prompt, [likely])  # type: ignore[arg-type]
    with sides.side("tuned") as tuned:
        (said,) = answer(tuned, tokenizer, renderer, [asked], max_new_tokens=4, batch_size=1)
    assert (said.text, said.finished) == ("", True)
