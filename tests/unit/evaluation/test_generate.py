"""Do batched answers and answer NLLs equal those of one unpadded sequence at a time with dense logits?"""

from __future__ import annotations

import math
import random

import pytest
import torch

from selfaug.data.prompts import Renderer
from selfaug.generation.decoding import continuation_nll, greedy, stop_ids
from tests.models import EOS, PAD, VOCAB, tiny, tiny_tokenizer, with_lora

ARCHS = ("llama", "gemma3_text", "falcon_h1", "cohere")
# float64 models: what differs is the order of sums in padded batches. Falcon-H1's state space is float32 whatever the
# model is.
TOLERANCE = {"falcon_h1": 1e-6}


def _prompts(count: int = 7) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(3, VOCAB) for _ in range(rng.randrange(1, 25))] for _ in range(count)]


def _slowly(model: torch.nn.Module, prompt: list[int], new: int, stops: list[int]) -> list[int]:
    """Argmax of the dense logits of the whole sequence, one token after the other."""
    ids: list[int] = []
    with torch.no_grad():
        while len(ids) < new and not (ids and ids[-1] in stops):
            ids.append(int(model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("arch", ARCHS[:3])
def test_greedy_answers_equal_the_slow_way(arch: str) -> None:
    model = tiny(arch)
    prompts = _prompts(4)
    free = [_slowly(model, prompt, 4, [EOS]) for prompt in prompts]
    # A frequent token as stop, so that answers of one batch end at different times.
    stops = sorted({EOS, free[0][3]})
    wanted = [_slowly(model, prompt, 6, stops) for prompt in prompts]
    assert len({len(ids) for ids in wanted}) > 1
    for size in (1, 3):
        found = greedy(model, prompts, stops=stops, pad=PAD, max_new_tokens=6, batch_size=size)
        assert found == wanted


def test_the_models_own_sampling_settings_are_set_aside() -> None:
    model = tiny("llama")
    prompts = _prompts(3)
    wanted = [_slowly(model, prompt, 8, [EOS]) for prompt in prompts]
    own = model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature, own.suppress_tokens = 5.0, True, 2.0, [wanted[0][0]]
    penalised = model.generate(torch.tensor([prompts[0]]), max_new_tokens=8, do_sample=False)[0, len(prompts[0]) :]
    assert penalised.tolist() != wanted[0]  # precondition: they would change the answer
    assert greedy(model, prompts, stops=[EOS], pad=PAD, max_new_tokens=8, batch_size=3) == wanted
    assert model.generation_config is own


@pytest.mark.parametrize("arch", ARCHS)
def test_nll_equals_dense_logits(arch: str) -> None:
    model = with_lora(tiny(arch)).get_base_model()
    rng = random.Random(5)
    rows = [(prompt, [rng.randrange(3, VOCAB) for _ in range(rng.randrange(1, 6))]) for prompt in _prompts()]
    rows += [([], [5, 6, 7]), ([4], []), ([], [9])]
    for size in (1, 4):
        found = continuation_nll(model, rows, batch_size=size)
        for (prompt, answer), (nats, count) in zip(rows, found, strict=True):
            ids = prompt + answer
            first = max(len(prompt), 1)
            wanted = 0.0
            if len(ids) > first:
                with torch.no_grad():
                    logp = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
                wanted = -sum(float(logp[i - 1, ids[i]]) for i in range(first, len(ids)))
            assert count == max(len(ids) - first, 0)
            assert math.isclose(nats, wanted, rel_tol=TOLERANCE.get(arch, 1e-9), abs_tol=1e-12)


def test_stops_are_those_of_model_tokenizer_and_template() -> None:
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    model.generation_config.eos_token_id = [EOS, 11]
    renderer = Renderer(mode="plain", end_of_turn="w7")
    assert stop_ids(model, tokenizer, renderer) == [EOS, 7, 11]
    model.generation_config.eos_token_id = None
    assert stop_ids(model, tokenizer, Renderer(mode="plain", end_of_turn="w7 w8")) == [EOS]
