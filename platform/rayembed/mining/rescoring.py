"""Candidates rescored through an endpoint: a chat model that judges, or a cross-encoder that scores.

Answers are written down as they come: a run that is cut off continues with the queries that are missing.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayembed.common.endpoint_client import ask_all, connect_endpoint, keep_answer, stored_answers
from rayembed.common.errors import ResourceError
from rayembed.common.templates import templates
from rayembed.data.plan import fingerprint
from rayembed.mining.candidates import Candidates
from rayembed.mining.collection import Collection
from rayembed.mining.config import Rescoring, SourceMining
from rayembed.mining.filters import below_positive_share
from rayembed.mining.rows import choose

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RescoringRequest:
    """Documents of one query to rescore, as positions in the collection; `positive` is its best one."""

    query: int
    positive: int
    documents: tuple[int, ...]


@dataclass(frozen=True)
class RescoringResult:
    """How many documents were rescored, and those that are right after all, by query."""

    rescored: int
    right: dict[int, Set[int]]

    def summary(self) -> dict[str, Any]:
        """Counts, and the share that is right after all, which estimates the share of false negatives."""
        right = sum(len(documents) for documents in self.right.values())
        share = round(right / self.rescored, 4) if self.rescored else None
        return {"rescored": self.rescored, "right_after_all": right, "share": share}


def rescore(
    config: Rescoring,
    settings: SourceMining,
    collection: Collection,
    found: Iterator[tuple[Candidates, ...]],
    folder: Path,
) -> RescoringResult:
    """Rescore the best candidates of every query that pass the filters.

    Args:
        config: the endpoint.
        settings: of the source.
        collection: texts.
        found: candidates of each query in order, one item a teacher.
        folder: where the answers are kept.

    Raises:
        ResourceError: the endpoint fails, or answers with something else; earlier answers are kept.
    """
    made_from: dict[str, object] = {
        "instruction": settings.instruction,
        "endpoint": config.model_dump(mode="json", include={"kind", "url", "model", "share"}),
    }
    path = folder / f"rescored-{fingerprint(made_from)[:12]}.jsonl"
    known = _Known(path)
    requests = list(_requests(config, settings, found))
    keys = collection.document_ids
    asked = list(zip(collection.queries.to_pylist(), collection.instructions.to_pylist(), strict=True))
    missing = [
        request
        for request in requests
        if not {keys[document].as_py() for document in request.documents} <= known.seen[asked[request.query]]
    ]
    logger.info("source %s: rescoring %d of %d queries", settings.source, len(missing), len(requests))
    ask: Callable[[RescoringRequest], tuple[RescoringRequest, list[int]]] = (
        _Judge(config, settings, collection) if config.kind == "judge" else _Reranker(config, collection)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        for request, found_right in ask_all(config, ask, missing):
            query, instruction = asked[request.query]
            record = {
                "query": query,
                "instruction": instruction,
                "seen": [keys[document].as_py() for document in request.documents],
                "right": [keys[document].as_py() for document in found_right],
            }
            keep_answer(stream, record)
            known.add(record)
    return _result(requests, [known.right.get(one, set()) for one in asked], keys)


def _result(
    requests: Sequence[RescoringRequest], right_keys: Sequence[Set[str]], keys: pa.Array
) -> RescoringResult:
    """Which documents are right; `right_keys` has the content hashes of those known, by query."""
    right: dict[int, Set[int]] = {}
    for request in requests:
        known = right_keys[request.query]
        if known:
            right[request.query] = {
                document for document in request.documents if keys[document].as_py() in known
            }
    return RescoringResult(sum(len(request.documents) for request in requests), right)


def _requests(
    config: Rescoring, settings: SourceMining, found: Iterator[tuple[Candidates, ...]]
) -> Iterator[RescoringRequest]:
    taking_best = settings.model_copy(update={"sample_from": None, "fill": "none"})
    for query, candidates in enumerate(found):
        choice = choose(
            candidates,
            taking_best,
            wanted=config.top,
            taken=set(),
            size=0,
            generator=np.random.default_rng(0),
        )
        if choice.mined:
            first = candidates[0]
            best = int(first.positives[int(first.positive_scores.argmax())])
            yield RescoringRequest(query, best, tuple(choice.mined))


class _Judge:
    """Asks a chat model about each document."""

    def __init__(self, config: Rescoring, settings: SourceMining, collection: Collection):
        self._config, self._collection = config, collection
        self._instruction = settings.instruction
        self._client = connect_endpoint(config)
        self._prompt = templates("rayembed.mining", "prompts").get_template("judge.txt")

    def __call__(self, request: RescoringRequest) -> tuple[RescoringRequest, list[int]]:
        return request, [
            document for document in request.documents if self._is_right(request.query, document)
        ]

    def _is_right(self, query: int, document: int) -> bool:
        prompt = self._prompt.render(
            instruction=self._collection.instructions[query].as_py() or self._instruction,
            query=self._collection.queries[query].as_py(),
            document=self._collection.documents[document].as_py(),
        )
        answer = self._client.chat.completions.create(
            model=self._config.model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0.0,
            max_tokens=8,
        )
        words = (answer.choices[0].message.content or "").lower().split()
        first = words[0].strip(".,!:;\"'*") if words else ""
        if first not in {"yes", "no"}:
            raise ResourceError(
                f"{self._config.url}, model {self._config.model}: the judge answers neither yes nor no; use "
                "a model that follows instructions"
            )
        return first == "yes"


class _Reranker:
    """Has a cross-encoder score the positive and the documents of a query together."""

    def __init__(self, config: Rescoring, collection: Collection):
        self._config, self._collection = config, collection
        self._client = connect_endpoint(config)

    def __call__(self, request: RescoringRequest) -> tuple[RescoringRequest, list[int]]:
        texts = self._collection.documents.take([request.positive, *request.documents]).to_pylist()
        query = self._collection.queries[request.query].as_py()
        body = {"model": self._config.model, "query": query, "documents": texts}
        answer: Any = self._client.post("/rerank", body=body, cast_to=object)
        try:
            scores = {item["index"]: float(item["relevance_score"]) for item in answer["results"]}
            ordered = [scores[position] for position in range(len(texts))]
        except (KeyError, TypeError) as error:
            raise ResourceError(
                f"{self._config.url}/rerank does not answer with a relevance_score for every document"
            ) from error
        wrong = below_positive_share(np.array(ordered[1:]), ordered[0], self._config.share)
        return request, [
            document for document, keep in zip(request.documents, wrong, strict=True) if not keep
        ]


class _Known:
    """Content hashes of the documents that were rescored, and of those that are right.

    Both by query and its own instruction, "" for none.
    """

    def __init__(self, path: Path):
        self.seen: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self.right: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for record in stored_answers(path):
            self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        """Take one answer in."""
        key = record["query"], record.get("instruction", "")
        self.seen[key].update(record["seen"])
        self.right[key].update(record["right"])
