"""Does the base write what it would alone, one request at a time, whatever batch a request is in?"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from selfaug.data.prompts import Renderer
from selfaug.generation.local import LocalModel, _Draw
from selfaug.generation.requests import Reply, Request
from tests.chatting import chat_model, chat_tokenizer
from tests.models import with_lora

HEADER = "<|im_start|>user\n"
SAMPLED = [Request(text=HEADER, stop="<|im_end|>", temperature=1.0, seed=i, length=24) for i in range(9)]
ASKED = [
    Request(({"role": "user", "content": f"hello {word} fox"},), length=24)
    for word in ("the", "quick", "one two three four five six", "brown", "park with her dog")
]


def source(model: torch.nn.Module, batch_size: int) -> LocalModel:
    tokenizer = chat_tokenizer()
    return LocalModel(model, tokenizer, Renderer.for_tokenizer(tokenizer), batch_size)  # type: ignore[arg-type]


def replies(model: torch.nn.Module, batch_size: int, requests: list[Request]) -> list[Reply]:
    found: dict[int, Reply] = {}
    for batch in source(model, batch_size).ask(requests):
        assert not found.keys() & batch.keys()
        found |= batch
    return [found[i] for i in range(len(requests))]


def test_a_reply_does_not_depend_on_its_batch() -> None:
    model = chat_model()
    mixed = [*SAMPLED, *ASKED, replace(SAMPLED[0], top_p=0.5), replace(SAMPLED[0], temperature=3.0)]
    alone = replies(model, 1, mixed)
    assert replies(model, 5, mixed) == alone
    assert replies(model, 4, mixed[::-1]) == alone[::-1]
    assert len({reply.text for reply in alone[:9]}) == 9
    assert len({alone[0], *alone[-2:]}) == 3


def test_likeliest_words_are_those_of_the_dense_model() -> None:
    model, tokenizer = chat_model(), chat_tokenizer()
    controls = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for request, reply in zip(ASKED, replies(model, 5, ASKED), strict=True):
        text = f"{HEADER}{request.messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        said: list[int] = []
        # Any control token ends it: what follows would be another turn.
        while len(said) < request.length and not controls & set(said):
            said.append(int(model(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
        assert reply == Reply(tokenizer.decode(said, skip_special_tokens=True).strip(), bool(controls & set(said)))


def test_it_is_the_base_that_writes() -> None:
    tuned = with_lora(chat_model()).get_base_model()
    expected = replies(chat_model(), 3, ASKED)
    from_tuned = tuned.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=20)
    assert not torch.equal(from_tuned, chat_model().generate(torch.tensor([[5, 6, 7]]), max_new_tokens=20))
    tuned.train()
    assert replies(tuned, 3, ASKED) == expected
    assert tuned.training


def test_between_two_batches_the_model_is_as_it_was() -> None:
    tuned = with_lora(chat_model()).get_base_model().train()
    before = tuned.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8)
    for _ in source(tuned, 2).ask(ASKED):
        assert tuned.training
        assert torch.is_grad_enabled()
        assert torch.equal(tuned.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8), before)


def test_draws_have_the_models_probabilities() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5])
    for temperature, top_p, kept in ((1.0, 1.0, 5), (2.0, 1.0, 5), (1.0, 0.7, 2)):
        p = (logits / temperature).softmax(-1)
        p = torch.where(p >= p.sort().values[-kept], p, torch.zeros(()))
        p = p / p.sum()
        draws = 4000
        requests = [Request(text="x", temperature=temperature, top_p=top_p, seed=i) for i in range(draws)]
        scores = _Draw(requests)(torch.zeros(draws, 1, dtype=torch.int64), logits.expand(draws, -1))
        counts = Counter(scores.argmax(-1).tolist())
        for token, share in enumerate(p.tolist()):
            # Five standard deviations of a binomial count.
            assert abs(counts[token] - draws * share) <= 5 * (draws * share * (1 - share)) ** 0.5


def test_a_row_without_temperature_keeps_its_scores_beside_drawn_ones() -> None:
    scores = torch.randn(2, 7)
    changed = _Draw([Request(text="x"), Request(text="x", temperature=1.0)])(torch.zeros(2, 1), scores)
    assert torch.equal(changed[0], scores[0])
    assert not torch.equal(changed[1], scores[1])


@pytest.mark.parametrize("length", [510, 700])
def test_a_prompt_that_leaves_no_room_is_not_asked(length: int) -> None:
    """The model's context is 512 tokens: a few are left, or none."""
    text = HEADER + " fox" * 800
    tokenizer = chat_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:length]
    cut = Request(text=tokenizer.decode(ids), length=24)
    full, other = replies(chat_model(), 1, [cut, ASKED[0]])
    assert not full.ended
    assert other == replies(chat_model(), 1, [ASKED[0]])[0]


def test_a_reply_ends_where_a_turn_of_its_own_begins() -> None:
    own = source(chat_model(), 1)
    ids = own.tokenizer("Who? <|im_start|>assistant\nI", add_special_tokens=False)["input_ids"]
    assert own._reply(ids, [0], "") == Reply("Who?", True)
    ids = own.tokenizer("Who? ASSISTANT: I", add_special_tokens=False)["input_ids"]
    assert own._reply(ids, [0], "ASSISTANT:") == Reply("Who?", True)
    assert own._reply(ids, [0], "") == Reply("Who? ASSISTANT: I", False)
    assert own._reply(ids, [ids[-1]], "").ended
