"""Candidates rescored through an endpoint: a chat model that judges, or a cross-encoder that scores.

Answers are written down as they come: a run that is cut off continues with the queries that are missing, and
another `share` is applied to the scores that are there. A document that the model has no usable answer about
becomes no negative; a run ends when that happens often.
"""

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
MOST_POSITIVES = 4  # of one query that a reranker scores


@dataclass(frozen=True)
class RescoringRequest:
    """Documents of one query to rescore, and its known positives, all as positions in the collection."""

    query: int
    positives: tuple[int, ...]
    documents: tuple[int, ...]


@dataclass
class RescoringResult:
    """What came of the rescored documents of each query, each counted once.

    Attributes:
        wrong: documents that do not answer the query, so that they may be its negatives.
        right: documents that are right after all.
        unanswered: documents that got no usable answer.
        scores: of a reranker, for positives too; empty for a judge.
    """

    wrong: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    right: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    unanswered: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    scores: defaultdict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))

    def summary(self) -> dict[str, Any]:
        """Counts, and the share that is right after all, which estimates the share of false negatives."""
        wrong, right, unanswered = (
            sum(map(len, group.values())) for group in (self.wrong, self.right, self.unanswered)
        )
        share = round(right / (wrong + right), 4) if wrong + right else None
        rescored = wrong + right + unanswered
        return {"rescored": rescored, "right_after_all": right, "share": share, "unanswered": unanswered}

    def pair_scores(self, query: int, documents: Sequence[int]) -> list[float]:
        """Scores of the reranker, not a number for documents that it has not seen."""
        return [self.scores[query].get(document, math.nan) for document in documents]


def rescore(
    config: Rescoring,
    settings: SourceMining,
    collection: Collection,
    found: Iterator[tuple[Candidates, ...]],
    folder: Path,
) -> RescoringResult:
    """Rescore the best candidates of every query that pass the filters, `top` at a time.

    A query whose candidates are right after all is asked about its next ones, until as many are wrong as it
    needs negatives, or none are left. What was never looked at becomes no negative.

    Args:
        config: the endpoint.
        settings: of the source.
        collection: texts.
        found: candidates of each query in order, one item a teacher.
        folder: where the answers are kept.

    Raises:
        ResourceError: the endpoint fails, or most answers are none; earlier answers are kept.
    """
    made_from: dict[str, object] = {
        "instruction": settings.instruction,
        "endpoint": config.model_dump(mode="json", include={"kind", "url", "model"}),
        "form": 2,  # of a line
    }
    answers = _Answers(folder / f"rescored-{fingerprint(made_from)[:12]}.jsonl", config, settings, collection)
    result = RescoringResult()
    wanted = settings.sample_from or settings.negatives_per_query
    ranked = dict(_ranked(settings, found))
    for start in range(0, max((len(one.documents) for one in ranked.values()), default=0), config.top):
        window = [
            RescoringRequest(query, one.positives, one.documents[start : start + config.top])
            for query, one in ranked.items()
            if len(result.wrong[query]) < wanted and start < len(one.documents)
        ]
        if window:
            answers.fetch(window)
            for request in window:
                answers.sort_into(result, request)
    return result


def _ranked(
    settings: SourceMining, found: Iterator[tuple[Candidates, ...]]
) -> Iterator[tuple[int, RescoringRequest]]:
    """All candidates of each query that pass the filters, best first."""
    taking_all = settings.model_copy(update={"sample_from": None, "fill": "none"})
    for query, candidates in enumerate(found):
        first = candidates[0]
        choice = choose(
            candidates,
            taking_all,
            wanted=sum(len(one.documents) for one in candidates),
            taken=set(),
            size=0,
            generator=np.random.default_rng(0),
        )
        best_first = first.positives[np.argsort(-first.positive_scores, kind="stable")].tolist()
        if choice.mined:
            yield query, RescoringRequest(query, tuple(best_first[:MOST_POSITIVES]), tuple(choice.mined))


class _Answers:
    """The answers of one model to the queries of a source, on disk as they come.

    A line holds a query, its own instruction, content hashes of documents, and for each a score or, in words,
    why there is none; `positives` has the scores of the query's positives, `positive_keys` their hashes.
    """

    def __init__(self, path: Path, config: Rescoring, settings: SourceMining, collection: Collection):
        self._path, self._config, self._source = path, config, settings.source
        self._keys = collection.document_ids
        self._asked = list(
            zip(collection.queries.to_pylist(), collection.instructions.to_pylist(), strict=True)
        )
        self._ask: Callable[[RescoringRequest], Answer] = (
            _Judge(config, settings, collection) if config.kind == "judge" else _Reranker(config, collection)
        )
        self._known: defaultdict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
        self._misfits = _Misfits(config)
        for record in stored_answers(path):
            self._remember(record)

    def fetch(self, requests: Sequence[RescoringRequest]) -> None:
        """Ask what is not known yet."""
        missing = [
            request
            for request in requests
            if not all(self._is_known(request, document) for document in request.documents)
        ]
        logger.info("source %s: rescoring %d of %d queries", self._source, len(missing), len(requests))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as stream:
            for request, positives, answers in ask_all(self._config, self._ask, missing):
                query, instruction = self._asked[request.query]
                record = {
                    "query": query,
                    "instruction": instruction,
                    "positive_keys": [self._key(positive) for positive in request.positives],
                    "positives": positives,
                    "documents": [self._key(document) for document in request.documents],
                    "answers": answers,
                }
                keep_answer(stream, record)
                self._remember(record)
                self._misfits.count(answers)
        self._misfits.check(least=1)

    def sort_into(self, result: RescoringResult, request: RescoringRequest) -> None:
        """Tell the documents of a request apart by its answers."""
        for document in request.documents:
            record = self._known[self._asked[request.query]][self._key(document)]
            score = record["answer"]
            if isinstance(score, str):
                result.unanswered[request.query].add(document)
                continue
            positives = self._positive_scores(request, record)
            one, other = _probabilities([max(positives), score])
            wrong = below_positive_share(np.array([other]), one, self._config.share)[0]
            (result.wrong if wrong else result.right)[request.query].add(document)
            if self._config.kind == "reranker":
                known = dict(zip(request.positives, positives, strict=True))
                result.scores[request.query] |= known | {document: score}

    def _is_known(self, request: RescoringRequest, document: int) -> bool:
        record = self._known[self._asked[request.query]].get(self._key(document))
        if record is None or self._config.kind == "judge" or isinstance(record["answer"], str):
            return record is not None
        return all(self._key(positive) in record["positives"] for positive in request.positives)

    def _positive_scores(self, request: RescoringRequest, record: dict[str, Any]) -> list[float]:
        """Scores of the request's positives; a judge has one for all."""
        known = record["positives"]
        if self._config.kind == "judge":
            return [1.0]
        return [known[self._key(positive)] for positive in request.positives]

    def _key(self, document: int) -> str:
        return self._keys[document].as_py()

    def _remember(self, record: dict[str, Any]) -> None:
        of_query = self._known[record["query"], record["instruction"]]
        positives = dict(zip(record["positive_keys"], record["positives"], strict=False))
        for key, answer in zip(record["documents"], record["answers"], strict=True):
            of_query[key] = {"answer": answer, "positives": positives}


def _probabilities(scores: list[float]) -> list[float]:
    """Scores between 0 and 1: logits, of which a share would mean nothing, go through a sigmoid."""
    if min(scores) >= 0 and max(scores) <= 1:
        return scores
    return [float(1 / (1 + np.exp(-score))) for score in scores]


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


Answer = tuple[RescoringRequest, list[float], list[float | str]]
"""A request, scores of its positives, and of each document a score or why there is none."""


class _Judge:
    """Asks a chat model about each document; its yes is 1, its no 0."""

    def __init__(self, config: Rescoring, settings: SourceMining, collection: Collection):
        self._config, self._collection = config, collection
        self._instruction = settings.instruction
        self._chat = Chat(config, temperature=0.0, max_tokens=_JUDGE_TOKENS)
        self._prompt = templates("rayembed.mining", "prompts").get_template("judge.txt")

    def __call__(self, request: RescoringRequest) -> "Answer":
        return request, [1.0], [self._answer(request.query, document) for document in request.documents]

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

    def __call__(self, request: RescoringRequest) -> "Answer":
        texts = self._collection.documents.take([*request.positives, *request.documents]).to_pylist()
        query = self._collection.queries[request.query].as_py()
        try:
            scores = self._scores(query, texts)
        except RefusedItemError as error:
            return request, [], [f"the request is refused ({error})"] * len(request.documents)
        known = len(request.positives)
        return request, scores[:known], list(scores[known:])

    def _scores(self, query: str, texts: list[str]) -> list[float]:
        if not self._speaks_tei:
            try:
                return self._ask("/rerank", "relevance_score", query, documents=texts)
            except RefusedItemError:
                pass  # of the text or of the form; the other form tells which
        scores = self._ask(self._config.url.removesuffix("/v1") + "/rerank", "score", query, texts=texts)
        self._speaks_tei = True
        return scores

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
