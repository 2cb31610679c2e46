"""Are passages ranked by the vectors of a real embedding model, and merged with BM25's ranking by the formula?"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.cli.main import main
from selfaug.common.endpoint import Endpoint, EndpointError
from selfaug.common.errors import DataError
from selfaug.data.corpus import Corpus
from selfaug.data.dense import DenseCorpus, LocalEmbedder, ServedEmbedder
from selfaug.data.record import Document
from tests.server import Server

WORDS = ["cat", "dog", "rain", "snow", "may", "garden", "sun", "moon"]
TEXTS = [" ".join(WORDS[(i * 3 + j * j) % len(WORDS)] for j in range(2 + i % 4)) for i in range(30)]


class Counted:
    """An embedder of word counts, which says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def key(self) -> dict[str, str]:
        return {"words": " ".join(WORDS)}

    def embed(self, texts: Sequence[str], kind: str) -> np.ndarray:
        self.asked += [(kind, text) for text in texts]
        found = np.array([[text.split().count(word) + 0.01 for word in WORDS] for text in texts], np.float32)
        return found / np.linalg.norm(found, axis=-1, keepdims=True)


def cosine(a: str, b: str) -> float:
    x, y = ([text.split().count(word) + 0.01 for word in WORDS] for text in (a, b))
    return sum(p * q for p, q in zip(x, y, strict=True)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


def of(texts: list[str], hybrid: bool) -> tuple[DenseCorpus, Counted]:
    embedder = Counted()
    corpus = Corpus(tuple(Document(text, id=str(i)) for i, text in enumerate(texts)))
    return DenseCorpus(corpus, embedder.embed([f" {text}" for text in texts], "passage"), embedder, hybrid), embedder


sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(sentences, min_size=1, max_size=12), sentences, st.integers(1, 12))
def test_the_best_passages_are_those_of_the_largest_cosine(texts: list[str], question: str, k: int) -> None:
    dense, _ = of(texts, hybrid=False)
    expected = sorted(-round(cosine(question, text), 5) for text in texts)
    found = dense.search(question, k)
    assert len(found) == min(k, len(texts))
    assert [-round(d.score or 0, 5) for d in found] == pytest.approx(expected[: len(found)], abs=2e-5)
    for document in found:
        assert document.score == pytest.approx(cosine(question, document.text), abs=1e-5)
        assert dense.score(question, document) == pytest.approx(document.score, abs=1e-5)
    assert list(dense.ranked(question, 1)) == list(dense.ranked(question, 50))


@settings(max_examples=40, deadline=None)
@given(st.lists(sentences, min_size=1, max_size=12, unique=True), sentences)
def test_two_rankings_are_merged_by_reciprocal_ranks(texts: list[str], question: str) -> None:
    dense, _ = of(texts, hybrid=True)
    by_cosine = [d.id for d in of(texts, hybrid=False)[0].search(question, len(texts))]
    by_words = [d.id for d in dense.corpus.search(question, len(texts))]
    expected = {
        str(i): sum(1 / (61 + ranking.index(str(i))) for ranking in (by_cosine, by_words) if str(i) in ranking)
        for i in range(len(texts))
    }
    found = dense.search(question, len(texts))
    assert {d.id: d.score for d in found} == pytest.approx(expected)
    assert [d.score for d in found] == sorted((d.score or 0 for d in found), reverse=True)
    assert found[:3] == dense.search(question, 3)


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


def test_vectors_are_kept_for_the_same_passages_and_model(corpus_file: Path) -> None:
    corpus, embedder = Corpus.load(corpus_file), Counted()
    first = DenseCorpus.of(corpus, embedder)
    assert [text.strip() for _, text in embedder.asked] == TEXTS
    again = DenseCorpus.of(Corpus.load(corpus_file), embedder)
    assert len(embedder.asked) == len(TEXTS)
    assert isinstance(again.vectors.base, np.memmap)
    assert again.search("rain", 5) == first.search("rain", 5)
    corpus_file.write_text(corpus_file.read_text().replace("rain", "sun"))
    DenseCorpus.of(Corpus.load(corpus_file), embedder)
    assert len(embedder.asked) == 2 * len(TEXTS) + 2  # and the question, twice


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def test_a_served_model_gives_a_vector_for_each_text_or_an_error(server: Server) -> None:
    embedder = ServedEmbedder(Endpoint(server.url, retries=0, timeout=5.0), "e5")
    rows = [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}]  # in any order
    server.reply = lambda body, n: (200, json.dumps({"data": rows}).encode())
    assert embedder.embed(["a", "b"], "passage").tolist() == [pytest.approx([0.6, 0.8]), pytest.approx([0.0, 1.0])]
    assert server.asked[0] == {"model": "e5", "input": ["a", "b"]}
    assert server.headers[0]["path"] == "/v1/embeddings"
    nothing = {"data": [rows[0], {"index": 0, "embedding": [math.nan, 1.0]}]}
    for wrong in ({"data": rows[:1]}, {"data": []}, {"choices": []}, [], "x", nothing):
        server.reply = lambda body, n, wrong=wrong: (200, json.dumps(wrong).encode())  # type: ignore[misc]
        with pytest.raises(EndpointError, match="did not give a vector for each of 2 texts"):
            embedder.embed(["a", "b"], "question")


@pytest.mark.parametrize("other", [[1.0, 2.0, 2.0, 2.0], [1.0, 2.0, -2.0]])
def test_another_model_behind_the_same_name_is_refused(corpus_file: Path, server: Server, other: list[float]) -> None:
    vector = [1.0, 2.0, 2.0]
    server.reply = lambda body, n: (
        200, json.dumps({"data": [{"index": i, "embedding": vector} for i in range(len(body["input"]))]}).encode()
    )  # fmt: skip
    embedder = ServedEmbedder(Endpoint(server.url, retries=0, timeout=5.0), "e5")
    for _ in range(2):
        assert len(DenseCorpus.of(Corpus.load(corpus_file), embedder).search("rain", 5)) == 5
    embedded = [asked["input"] for asked in server.asked if len(asked["input"]) > 1]
    assert len(embedded) == 1, "the vectors were not kept"
    vector = other
    with pytest.raises(DataError, match="e5 is not the model that it was"):
        DenseCorpus.of(Corpus.load(corpus_file), embedder)


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of sentence-transformers on disk, with a prefix for questions."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("embedder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", *WORDS]))
    config = BertConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    layers = Transformer(str(folder / "bert"))
    model = SentenceTransformer(modules=[layers, Pooling(16)], prompts={"query": "query: "})
    model.save(str(folder / "model"))
    return folder / "model"


@pytest.mark.nightly  # its libraries take ten seconds to import
@pytest.mark.parametrize("hybrid", [False, True])
def test_prepare_retrieves_as_the_model_ranks(
    real_model: Path, corpus_file: Path, tmp_path: Path, hybrid: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    rows = [{"question": f"{a} {b}", "answer": "nowhere"} for a, b in itertools.pairwise(WORDS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["prepare", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "out", "--held_out", "0"]
    words += ["--corpus", corpus_file, "--retriever", real_model, "--top_k", "3", *(["--hybrid"] if hybrid else [])]
    assert main([*map(str, words)]) == 0
    model = SentenceTransformer(str(real_model))
    passages = model.encode(TEXTS, normalize_embeddings=True)
    questions = model.encode([f"query: {row['question']}" for row in rows], normalize_embeddings=True)
    plain = model.encode([row["question"] for row in rows], normalize_embeddings=True)
    assert np.abs(questions - plain).max() > 1e-3  # the prefix matters
    made = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    for row, vector in zip(made, questions, strict=True):
        scores = passages @ vector
        best = dict(sorted(zip(TEXTS, scores.tolist(), strict=True), key=lambda pair: -pair[1]))
        found = {document["text"]: document["score"] for document in row["documents"]}
        assert len(found) == 3
        if hybrid:
            assert all(1 / 1060 < score <= 2 / 61 for score in found.values())
        else:
            assert found == pytest.approx(dict(list(best.items())[:3]), abs=1e-5)


@pytest.mark.nightly  # its libraries take ten seconds to import
def test_a_model_that_was_not_made_for_retrieval_is_told(real_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LocalEmbedder(str(real_model))
    assert "modules.json" not in capsys.readouterr().err
    LocalEmbedder(str(real_model.parent / "bert"))
    assert "bert has no modules.json of sentence-transformers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hybrid"], "none is named"),
        (["--retriever_url", "http://x/v1"], "given together"),
        (["--retriever_model", "m"], "given together"),
        (["--retriever", "m", "--retriever_url", "http://x/v1", "--retriever_model", "m"], "both name"),
        (["--retriever_url", "x", "--retriever_model", "m"], "no http address"),
        (["--retriever", "./no-such"], "--retriever './no-such' does not exist"),
        (["--retriever", __file__], "is a file"),
        pytest.param(["--retriever", "no/such-model"], "no embedding model could be loaded", marks=pytest.mark.nightly),
    ],
)
def test_mistakes_are_told_before_data_is_read(
    corpus_file: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(tmp_path / "none.jsonl"), "--check", "--corpus", str(corpus_file), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_retriever_without_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(tmp_path / "none.jsonl"), "--check", "--retriever", "m"]) == 2
    assert "no corpus is given" in capsys.readouterr().err
