"""Candidates rescored: a chat model behind an endpoint judges, or a cross-encoder, there or here, scores.

Answers are written down as they come: a run that is cut off continues with the queries that are missing, and
another `share` is applied to the scores that are there. A document that the model has no usable answer about
becomes no negative; a run ends when that happens often.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rayembed.common.endpoint_client import kept_answers, stored_answers
from rayembed.common.errors import DataError, ResourceError
from rayembed.common.paths import fetch, resolve
from rayembed.common.progress import Progress
from rayembed.data.plan import fingerprint
from rayembed.mining.candidates import Candidates
from rayembed.mining.collection import Collection
from rayembed.mining.config import CrossEncoder, Judge, Rescoring, SourceMining
from rayembed.mining.filters import below_positive_share
from rayembed.mining.judges import RescoringRequest, answers_of
from rayembed.mining.rows import choose, found_back
from rayembed.mining.teachers import model_files

logger = logging.getLogger(__name__)

_ENOUGH_ANSWERS, _MOST_MISFITS = 20, 0.5
_MOST_RIGHT = 0.5  # of what a search finds; a model that says yes to more knows too little
MOST_POSITIVES = 4  # of one query that a reranker scores


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
    *,
    actors: int | None = None,
) -> RescoringResult:
    """Rescore the best candidates of every query that pass the filters, `top` at a time.

    A query whose candidates are right after all is asked about its next ones, until as many are wrong as it
    needs negatives, or none are left. What was never looked at becomes no negative.

    Args:
        config: the endpoint or model.
        settings: of the source.
        collection: texts.
        found: candidates of each query in order, one item a teacher.
        folder: where the answers are kept.
        actors: for a local model: most Ray actors, as `run_items` takes it.

    Raises:
        DataError: a score does not fit the scale of the others, or there is no local model.
        ResourceError: the endpoint fails, or most answers are none; earlier answers are kept.
    """
    made_from: dict[str, object] = {
        "instruction": settings.instruction,
        "endpoint": {"kind": config.kind, "files": model_files(fetch(resolve(config.path)))}
        if isinstance(config, CrossEncoder)
        else config.model_dump(mode="json", include={"kind", "url", "model"}),
        "form": 2,  # of a line
    }
    path = fetch(folder / f"rescored-{fingerprint(made_from)[:12]}.jsonl")
    answers = _StoredAnswers(path, config, settings, collection, actors)
    result = RescoringResult()
    wanted = settings.sample_from or settings.negatives_per_query
    ranked = dict(_ranked(settings, found))
    most = max((len(one.documents) for one in ranked.values()), default=0)
    start, width = 0, config.top
    while start < most:
        window = [
            RescoringRequest(query, one.positives, one.documents[start : start + width])
            for query, one in ranked.items()
            if len(result.wrong[query]) < wanted and start < len(one.documents)
        ]
        if window:
            answers.fetch(window)
            for request in window:
                answers.sort_into(result, request)
        start += width
        if isinstance(config, CrossEncoder):  # loaded for every window: 8, 16, 32, 64 documents, not 13 x 8
            width *= 2
    share = result.summary()["share"]
    if share is not None and share > _MOST_RIGHT:
        logger.warning(
            "source %s: %s finds %.0f %% of the candidates right; read some of them before you train, and "
            "use a stronger model if they are not",
            settings.source, _name(config), 100 * share,
        )  # fmt: skip
    return result


def _ranked(
    settings: SourceMining, found: Iterator[tuple[Candidates, ...]]
) -> Iterator[tuple[int, RescoringRequest]]:
    """All candidates of each query that pass the filters, best first."""
    taking_all = settings.model_copy(update={"sample_from": None, "fill": "none"})
    for query, candidates in enumerate(found):
        first = candidates[0]
        if not found_back(candidates, first.positives.tolist(), settings.round_trip):
            continue
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


class _StoredAnswers:
    """The answers of one model to the queries of a source, on disk as they come.

    A line holds a query, its own instruction, content hashes of documents, and for each a score or, in words,
    why there is none; `positives` has the scores of the query's positives, `positive_keys` their hashes.
    """

    def __init__(
        self,
        path: Path,
        config: Rescoring,
        settings: SourceMining,
        collection: Collection,
        actors: int | None,
    ):
        self._path, self._config, self._source = path, config, settings.source
        self._keys = collection.document_ids
        self._asked = list(
            zip(collection.queries.to_pylist(), collection.instructions.to_pylist(), strict=True)
        )
        self._answers = answers_of(config, settings, collection, actors)
        self._scale = _Scale(config)
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
        title = f"source {self._source}, rescoring"
        logger.info("%s: %d of %d queries are to be asked", title, len(missing), len(requests))
        shown = Progress(logger, title, len(missing), unit="queries")
        with kept_answers(self._path) as keep:
            for request, positives, answers in self._answers(missing):
                query, instruction = self._asked[request.query]
                record = {
                    "query": query,
                    "instruction": instruction,
                    "positive_keys": [self._key(positive) for positive in request.positives],
                    "positives": positives,
                    "documents": [self._key(document) for document in request.documents],
                    "answers": answers,
                }
                keep(record)
                self._remember(record)
                self._misfits.count(answers)
                shown.add()
        self._misfits.check(least=1)
        self._scale.decide(self._scores())

    def _scores(self) -> Iterator[float]:
        """All scores that are known, of positives too."""
        for of_query in self._known.values():
            for record in of_query.values():
                if not isinstance(record["answer"], str):
                    yield from (record["answer"], *record["positives"].values())

    def sort_into(self, result: RescoringResult, request: RescoringRequest) -> None:
        """Tell the documents of a request apart by its answers."""
        for document in request.documents:
            record = self._known[self._asked[request.query]][self._key(document)]
            score = record["answer"]
            if isinstance(score, str):
                result.unanswered[request.query].add(document)
                continue
            positives = self._positive_scores(request, record)
            one, other = map(self._scale.probability, (max(positives), score))
            wrong = below_positive_share(np.array([other]), one, self._config.share)[0]
            (result.wrong if wrong else result.right)[request.query].add(document)
            if self._config.kind != "judge":
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


class _Scale:
    """Whether a model's scores are logits, of which a share would mean nothing, or probabilities.

    It is decided once for all scores of a model: by its setting, or by the first scores. Three scores, of
    which the first two come first:

        [0.9, 0.2] -> probabilities    then 1.4 is refused: a sigmoid of 1.4 alone would mix two scales
        [0.9, -3.] -> logits           then 1.4 goes through a sigmoid as they all do
    """

    def __init__(self, config: Rescoring):
        self._name = _name(config)
        self._declared = self._scale = "probabilities" if isinstance(config, Judge) else config.scale

    def decide(self, scores: Iterator[float]) -> None:
        """Look at all scores so far; DataError where one is outside the scale."""
        outside = next((score for score in scores if not 0 <= score <= 1), None)
        if self._scale is None:
            self._scale = "probabilities" if outside is None else "logits"
            logger.info("%s scores with %s", self._name, self._scale)
        elif self._scale == "probabilities" and outside is not None:
            why = "scale says so" if self._declared else "the scores before it were all between 0 and 1"
            raise DataError(
                f"{self._name} gives the score {outside:g}, which is no probability, and {why}; "
                "set rescoring.scale to logits"
            )

    def probability(self, score: float) -> float:
        """A score between 0 and 1."""
        return score if self._scale == "probabilities" else float(1 / (1 + np.exp(-score)))


def _name(config: Rescoring) -> str:
    return config.path if isinstance(config, CrossEncoder) else f"{config.url}, model {config.model}"


class _Misfits:
    """Counts the documents without a usable answer and ends a run that has many.

    A misfit is told by its reason, in the place of a score.
    """

    def __init__(self, config: Rescoring):
        self._name = _name(config)
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
                f"{self._name}: {self._reasons.total()} of {self._answers} answers cannot be used, "
                f"most often because {reason}; use a model that follows instructions"
            )
