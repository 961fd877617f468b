"""Candidates rescored through an endpoint: a chat model that judges, or a cross-encoder that scores.

Answers are written down as they come: a run that is cut off continues with the queries that are missing, and
another `share` is applied to the scores that are there. A document that the model has no usable answer about
becomes no negative; a run ends when that happens often.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayembed.common.endpoint_client import (
    Chat,
    ask_all,
    connect_endpoint,
    endpoint_errors,
    keep_answer,
    stored_answers,
)
from rayembed.common.errors import RefusedItemError, ResourceError
from rayembed.common.templates import templates
from rayembed.data.plan import fingerprint
from rayembed.mining.candidates import Candidates
from rayembed.mining.collection import Collection
from rayembed.mining.config import Rescoring, SourceMining
from rayembed.mining.filters import below_positive_share
from rayembed.mining.rows import choose

logger = logging.getLogger(__name__)

_JUDGE_TOKENS = 2048  # one word is asked for; a model that reasons first needs room for it
_ENOUGH_ANSWERS, _MOST_MISFITS = 20, 0.5


@dataclass(frozen=True)
class RescoringRequest:
    """Documents of one query to rescore, as positions in the collection; `positive` is its best one."""

    query: int
    positive: int
    documents: tuple[int, ...]


@dataclass(frozen=True)
class RescoringResult:
    """How many documents were rescored, and what came of it.

    Attributes:
        rescored: documents, each counted once a query.
        right: query -> documents that are right after all.
        unanswered: query -> documents that got no usable answer.
    """

    rescored: int
    right: dict[int, Set[int]]
    unanswered: dict[int, Set[int]]

    @property
    def refused(self) -> dict[int, Set[int]]:
        """Query -> documents that must be no negatives."""
        return {
            query: self.right.get(query, set()) | self.unanswered.get(query, set())
            for query in (*self.right, *self.unanswered)
        }

    def summary(self) -> dict[str, Any]:
        """Counts, and the share that is right after all, which estimates the share of false negatives."""
        right = sum(map(len, self.right.values()))
        unanswered = sum(map(len, self.unanswered.values()))
        answered = self.rescored - unanswered
        share = round(right / answered, 4) if answered else None
        return {
            "rescored": self.rescored, "right_after_all": right, "share": share, "unanswered": unanswered,
        }  # fmt: skip


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
        "endpoint": config.model_dump(mode="json", include={"kind", "url", "model"}),
    }
    path = folder / f"rescored-{fingerprint(made_from)[:12]}.jsonl"
    known: defaultdict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in stored_answers(path):
        _remember(known, record)
    requests = list(_requests(config, settings, found))
    keys = collection.document_ids
    asked = list(zip(collection.queries.to_pylist(), collection.instructions.to_pylist(), strict=True))
    missing = [
        request
        for request in requests
        if not {keys[document].as_py() for document in request.documents}
        <= known[asked[request.query]].keys()
    ]
    logger.info("source %s: rescoring %d of %d queries", settings.source, len(missing), len(requests))
    ask: Callable[[RescoringRequest], tuple[RescoringRequest, float, list[float | str]]] = (
        _Judge(config, settings, collection) if config.kind == "judge" else _Reranker(config, collection)
    )
    misfits = _Misfits(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        for request, positive, answers in ask_all(config, ask, missing):
            query, instruction = asked[request.query]
            record = {
                "query": query,
                "instruction": instruction,
                "positive": positive,
                "documents": [keys[document].as_py() for document in request.documents],
                "answers": answers,
            }
            keep_answer(stream, record)
            _remember(known, record)
            misfits.count(answers)
    misfits.check(least=1)
    result = RescoringResult(sum(len(request.documents) for request in requests), {}, {})
    for request in requests:
        for document in request.documents:
            record = known[asked[request.query]][keys[document].as_py()]
            if isinstance(record["answer"], str):
                result.unanswered.setdefault(request.query, set()).add(document)
            elif not below_positive_share(np.array([record["answer"]]), record["positive"], config.share)[0]:
                result.right.setdefault(request.query, set()).add(document)
    return result


def _remember(known: defaultdict[tuple[str, str], dict[str, dict[str, Any]]], record: dict[str, Any]) -> None:
    """Take an answer in: query and own instruction -> document's content hash -> its score or misfit."""
    of_query = known[record["query"], record["instruction"]]
    for key, answer in zip(record["documents"], record["answers"], strict=True):
        of_query[key] = {"answer": answer, "positive": record["positive"]}


class _Misfits:
    """Counts the documents without a usable answer and ends a run that has many.

    A misfit is told by its reason, in the place of a score.
    """

    def __init__(self, config: Rescoring):
        self._config = config
        self._answers = 0
        self._reasons: Counter[str] = Counter()

    def count(self, answers: list[float | str]) -> None:
        """Count the answers of one query."""
        self._answers += len(answers)
        self._reasons.update(answer for answer in answers if isinstance(answer, str))
        self.check(_ENOUGH_ANSWERS)

    def check(self, least: int) -> None:
        """Raise ResourceError where more than half of at least so many answers are none."""
        if self._answers >= least and self._reasons.total() > _MOST_MISFITS * self._answers:
            reason = self._reasons.most_common(1)[0][0]
            raise ResourceError(
                f"{self._config.url}, model {self._config.model}: {self._reasons.total()} of {self._answers} "
                f"answers cannot be used, most often because {reason}; use a model that follows instructions"
            )


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
    """Asks a chat model about each document; its yes is 1, its no 0."""

    def __init__(self, config: Rescoring, settings: SourceMining, collection: Collection):
        self._config, self._collection = config, collection
        self._instruction = settings.instruction
        self._chat = Chat(config, temperature=0.0, max_tokens=_JUDGE_TOKENS)
        self._prompt = templates("rayembed.mining", "prompts").get_template("judge.txt")

    def __call__(self, request: RescoringRequest) -> tuple[RescoringRequest, float, list[float | str]]:
        answers = [self._answer(request.query, document) for document in request.documents]
        return request, 1.0, answers

    def _answer(self, query: int, document: int) -> float | str:
        prompt = self._prompt.render(
            instruction=self._collection.instructions[query].as_py() or self._instruction,
            query=self._collection.queries[query].as_py(),
            document=self._collection.documents[document].as_py(),
        )
        try:
            with endpoint_errors(self._config):
                words = re.findall(r"\b(?:yes|no)\b", self._chat(prompt).text.lower())
        except RefusedItemError as error:
            return f"the request is refused ({error})"
        if len(set(words)) != 1:
            return "the judge answers neither yes nor no"
        return float(words[0] == "yes")


class _Reranker:
    """Has a cross-encoder score the positive and the documents of a query together.

    A service of text-embeddings-inference, which knows no `documents`, is asked in its own words.
    """

    def __init__(self, config: Rescoring, collection: Collection):
        self._config, self._collection = config, collection
        self._client = connect_endpoint(config)
        self._speaks_tei = False

    def __call__(self, request: RescoringRequest) -> tuple[RescoringRequest, float, list[float | str]]:
        texts = self._collection.documents.take([request.positive, *request.documents]).to_pylist()
        query = self._collection.queries[request.query].as_py()
        try:
            scores = self._scores(query, texts)
        except RefusedItemError as error:
            return request, 1.0, [f"the request is refused ({error})"] * len(request.documents)
        if min(scores) < 0 or max(scores) > 1:  # logits; a share of them would mean nothing
            scores = [float(1 / (1 + np.exp(-score))) for score in scores]
        return request, scores[0], list(scores[1:])

    def _scores(self, query: str, texts: list[str]) -> list[float]:
        if not self._speaks_tei:
            try:
                return self._ask("/rerank", "relevance_score", query, documents=texts)
            except RefusedItemError:
                found = self._ask(
                    self._config.url.removesuffix("/v1") + "/rerank", "score", query, texts=texts
                )
                self._speaks_tei = True
                return found
        return self._ask(self._config.url.removesuffix("/v1") + "/rerank", "score", query, texts=texts)

    def _ask(self, path: str, key: str, query: str, **texts: list[str]) -> list[float]:
        body = {"model": self._config.model, "query": query, **texts}
        with endpoint_errors(self._config):
            answer: Any = self._client.post(path, body=body, cast_to=object)
        (sent,) = texts.values()
        try:
            results = answer["results"] if isinstance(answer, dict) else answer
            scores = {item["index"]: float(item[key]) for item in results}
            return [scores[position] for position in range(len(sent))]
        except (KeyError, TypeError) as error:
            raise ResourceError(
                f"{self._config.url}/rerank does not answer with a {key} for every document"
            ) from error
