"""Dense retrieval: passages and questions as vectors of an embedding model, alone or merged with BM25."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from selfaug.common.endpoint import Endpoint, EndpointError
from selfaug.common.errors import ConfigError, DataError
from selfaug.common.files import missing_path
from selfaug.common.fingerprint import file_hash
from selfaug.common.processes import chunked
from selfaug.common.terminal import warn
from selfaug.data.corpus import Corpus, Ranked, passage_text
from selfaug.data.record import Document, Record
from selfaug.data.stored import find_or_make

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["DenseCorpus", "Embedder", "LocalEmbedder", "ServedEmbedder"]

Vectors = NDArray[np.float32]
Kind = Literal["question", "passage"]

_AT_ONCE = 256  # number of texts that are embedded at once
_CONSTANT = 60.0  # of reciprocal rank fusion
_DEPTH = 1000  # number of passages of each ranking that are merged
_VECTORS = "vectors.npy"
_APART = 0.15  # largest distance of one model's vectors of one text (a cosine of 0.99): number formats change less
# Weights that are not read: those of other libraries, and pickled ones.
_OTHER_FORMATS = ["onnx/*", "openvino/*", "*.onnx", "*.bin", "*.pt", "*.h5", "*.ot", "*.msgpack", "*.pkl"]


class Embedder(Protocol):
    """An embedding model."""

    def key(self) -> dict[str, Any]:
        """Return what decides the vectors, as JSON."""

    def embed(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one vector of norm 1 for each text."""


class LocalEmbedder:
    """A model of the package ``sentence-transformers``; questions and passages get the prefixes that it names.

    Args:
        name: Folder or hub name.

    Raises:
        ConfigError: If the package is not installed, or the model cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self._folder, self._model = _loaded(name)

    def key(self) -> dict[str, Any]:  # noqa: D102
        files = sorted(file for file in self._folder.rglob("*") if file.is_file())
        return {"files": [[str(file.relative_to(self._folder)), file_hash(file)] for file in files]}

    def embed(self, texts: Sequence[str], kind: Kind) -> Vectors:  # noqa: D102
        encode = self._model.encode_query if kind == "question" else self._model.encode_document
        return np.asarray(encode(list(texts), normalize_embeddings=True, show_progress_bar=False), np.float32)


@dataclass(frozen=True)
class ServedEmbedder:
    """A model behind an OpenAI-compatible endpoint (``/embeddings``); questions and passages are sent as they are.

    Args:
        endpoint: Endpoint of the server.
        name: Name of the model at the endpoint.
    """

    endpoint: Endpoint
    name: str

    def key(self) -> dict[str, Any]:  # noqa: D102
        return {"url": self.endpoint.address("/embeddings"), "model": self.name}

    def embed(self, texts: Sequence[str], kind: Kind) -> Vectors:  # noqa: D102
        raw = self.endpoint.post("/embeddings", {"model": self.name, "input": list(texts)})
        try:
            rows = sorted(json.loads(raw)["data"], key=lambda row: row["index"])
            found = np.array([row["embedding"] for row in rows], np.float32)
            assert found.shape == (len(texts), found.shape[-1])
            assert np.isfinite(found).all()
        except (ValueError, KeyError, TypeError, AssertionError, IndexError):
            raise EndpointError(
                f"{self.endpoint.address('/embeddings')} did not give a vector for each of {len(texts)} texts: "
                f"{raw[:200].decode('utf-8', 'replace')!r}",
                "check that the address is that of a server of embeddings, and --retriever_model.",
            ) from None
        return np.asarray(found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12), np.float32)


class DenseCorpus(Ranked):
    """A corpus whose passages are ranked by the cosine of their vector and the question's.

    With ``hybrid`` the score is that of reciprocal rank fusion (Cormack et al., SIGIR 2009) over the first 1,000
    passages of both rankings: the sum of 1 / (60 + rank), where BM25 ranks only passages that share a word.

    Args:
        corpus: The passages, and BM25's ranking of them.
        vectors: float32 [N, d]: their vectors, of norm 1.
        embedder: Model of the vectors.
        hybrid: Whether both rankings are merged.
    """

    def __init__(self, corpus: Corpus, vectors: Vectors, embedder: Embedder, hybrid: bool = False) -> None:
        self.passages = corpus.passages
        self.corpus, self.vectors, self.embedder, self.hybrid = corpus, vectors, embedder, hybrid
        self._known: dict[tuple[Kind, str], Vectors] = {}

    @classmethod
    def of(
        cls, corpus: Corpus, embedder: Embedder, hybrid: bool = False, progress: Callable[[int], None] | None = None
    ) -> DenseCorpus:
        """Return the corpus with the vectors of its passages, which are kept on disk like its index.

        Args:
            corpus: Corpus that was loaded from files.
            embedder: Embedding model.
            hybrid: Whether its ranking is merged with BM25's.
            progress: Function called with the number of passages that are embedded, where they are not yet.
        """

        def make(folder: Path) -> dict[str, Any]:
            done, vectors = 0, None
            for passages in chunked(corpus.passages, _AT_ONCE):
                found = embedder.embed([passage_text(passage) for passage in passages], "passage")
                if vectors is None:
                    shape = (len(corpus.passages), found.shape[1])
                    vectors = np.lib.format.open_memmap(folder / _VECTORS, "w+", np.float32, shape)
                vectors[done : done + len(found)] = found
                done += len(found)
                if progress is not None:
                    progress(done)
            assert vectors is not None  # a corpus is never empty
            vectors.flush()
            return {"passages": done}

        assert corpus.folder is not None
        folder, _ = find_or_make({"embeddings": 1, "corpus": corpus.folder.name, **embedder.key()}, make)
        vectors = np.load(folder / _VECTORS, mmap_mode="r").view(np.ndarray)
        if isinstance(embedder, ServedEmbedder):  # files decide a local model, but a server may change its own
            first = embedder.embed([passage_text(corpus.passages[0])], "passage")[0]
            if first.shape != vectors[0].shape or np.linalg.norm(first - vectors[0]) > _APART:
                raise DataError(
                    f"{embedder.endpoint.address('/embeddings')} gives another vector for the first passage of the "
                    f"corpus than the one that is kept: {embedder.name} is not the model that it was",
                    f"serve that model, or another name; to embed the corpus anew, remove {str(folder)!r}.",
                )
        return cls(corpus, vectors, embedder, hybrid)

    def look_ahead(self, records: Sequence[Record], progress: Callable[[int], None] | None = None) -> None:
        """Embed the records' questions and documents, many at once."""
        for done, some in enumerate(chunked(records, _AT_ONCE)):
            self._embed([record.question for record in some], "question")
            self._embed([passage_text(document) for record in some for document in record.documents], "passage")
            if progress is not None:
                progress(done * _AT_ONCE + len(some))

    def top(self, question: str, k: int) -> list[tuple[int, float]]:  # noqa: D102
        cosines = self.vectors @ self._vector("question", question)
        if not self.hybrid:
            return [(place, float(cosines[place])) for place in _best(cosines, k)]
        scores: dict[int, float] = {}
        for ranking in (_best(cosines, _DEPTH), [place for place, _ in self.corpus.top(question, _DEPTH)]):
            for rank, place in enumerate(ranking, start=1):
                scores[place] = scores.get(place, 0.0) + 1 / (_CONSTANT + rank)
        return sorted(scores.items(), key=lambda found: (-found[1], found[0]))[:k]

    def score(self, question: str, document: Document) -> float:  # noqa: D102
        asked = self._vector("question", question)
        cosine = float(self._vector("passage", passage_text(document)) @ asked)
        if not self.hybrid:
            return cosine
        lexical = self.corpus.score(question, document)
        better = [int((self.vectors @ asked > cosine).sum())]
        if lexical > 0:
            better.append(sum(score > lexical for _, score in self.corpus.top(question, _DEPTH)))
        return sum(1 / (_CONSTANT + 1 + count) for count in better if count < _DEPTH)

    def _vector(self, kind: Kind, text: str) -> Vectors:
        self._embed([text], kind)
        return self._known[kind, text]

    def _embed(self, texts: Sequence[str], kind: Kind) -> None:
        new = [text for text in dict.fromkeys(texts) if (kind, text) not in self._known]
        if new:
            self._known.update(zip(((kind, text) for text in new), self.embedder.embed(new, kind), strict=True))


def _best(scores: Vectors, k: int) -> list[int]:
    """Return the places of the ``k`` largest scores, largest first; equal ones in their order."""
    k = min(k, len(scores))
    places = np.flatnonzero(scores >= np.partition(scores, -k)[-k]) if k else np.zeros(0, np.int64)
    return [int(place) for place in places[np.argsort(-scores[places], kind="stable")][:k]]


def _loaded(name: str) -> tuple[Path, SentenceTransformer]:
    folder, hint = Path(name).expanduser(), "name the folder of an embedding model, or a hub name."
    if folder.is_file():
        raise ConfigError(f"--retriever {name} is a file", hint)
    if not folder.exists() and (folder.is_absolute() or name.startswith(".")):
        raise missing_path("--retriever", name, hint)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            f"--retriever {name} needs the package sentence-transformers, which is not installed",
            "pip install 'selfaug[retrieval]', or name an endpoint of embeddings with --retriever_url.",
        ) from None
    from huggingface_hub import snapshot_download

    try:
        if not folder.is_dir():
            folder = Path(snapshot_download(name, ignore_patterns=_OTHER_FORMATS))
        if not (folder / "modules.json").is_file():
            warn(
                f"--retriever {name} has no modules.json of sentence-transformers, which would say how its vectors are "
                "made, so they are the means of its last hidden states.",
                "a language model that was not trained for retrieval ranks badly; name an embedding model.",
            )
        return folder, SentenceTransformer(str(folder), model_kwargs={"use_safetensors": True})
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--retriever {name}: no embedding model could be loaded: {str(error).splitlines()[0][:200]}",
            "name bm25, or a folder or hub name of sentence-transformers with weights in safetensors.",
        ) from error
