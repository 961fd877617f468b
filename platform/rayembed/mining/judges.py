"""The models that rescore candidates: a chat model, `/rerank` of a service, a cross-encoder in this cluster.

Each takes requests and yields their answers as they come.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

from rayembed.common.device import resolve_device
from rayembed.common.endpoint_client import Chat, answer_form, ask_all, connect_endpoint, endpoint_errors
from rayembed.common.errors import DataError, RefusedItemError, ResourceError
from rayembed.common.paths import fetch, resolve
from rayembed.common.ray_work import run_items
from rayembed.common.templates import templates
from rayembed.mining.collection import Collection
from rayembed.mining.config import CrossEncoder, Judge, Reranker, Rescoring, SourceMining

_JUDGE_TOKENS = 2048  # one word is asked for; a model that reasons first needs room for it
_YES_OR_NO = answer_form(answer={"type": "string", "enum": ["yes", "no"]})
_QUERIES_PER_BATCH = 32  # of a local cross-encoder


@dataclass(frozen=True)
class RescoringRequest:
    """Documents of one query to rescore, and its known positives, all as positions in the collection."""

    query: int
    positives: tuple[int, ...]
    documents: tuple[int, ...]


Answer = tuple[RescoringRequest, list[float], list[float | str]]
"""A request, scores of its positives, and of each document a score or why there is none."""


def answers_of(
    config: Rescoring, settings: SourceMining, collection: Collection, actors: int | None
) -> Callable[[Sequence[RescoringRequest]], Iterator[Answer]]:
    """A function that has a model answer requests, on so many Ray actors where it is a local one."""
    if isinstance(config, CrossEncoder):
        return partial(_scored_here, config, collection, actors)
    ask = (
        _AskJudge(config, settings, collection)
        if isinstance(config, Judge)
        else _AskReranker(config, collection)
    )
    return partial(ask_all, config, ask)


class _AskJudge:
    """Asks a chat model about each document; its yes is 1, its no 0."""

    def __init__(self, config: Judge, settings: SourceMining, collection: Collection):
        self._config, self._collection = config, collection
        self._instruction = settings.instruction
        self._chat = Chat(config, temperature=0.0, max_tokens=_JUDGE_TOKENS, response_format=_YES_OR_NO)
        self._prompt = templates("rayembed.mining", "prompts").get_template("judge.txt")

    def __call__(self, request: RescoringRequest) -> Answer:
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


class _AskReranker:
    """Has a cross-encoder score the positive and the documents of a query together.

    A service of text-embeddings-inference, which knows no `documents`, is asked in its own words.
    """

    def __init__(self, config: Reranker, collection: Collection):
        self._config, self._collection = config, collection
        self._client = connect_endpoint(config)
        self._speaks_tei = False

    def __call__(self, request: RescoringRequest) -> Answer:
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


def _scored_here(
    config: CrossEncoder, collection: Collection, actors: int | None, requests: Sequence[RescoringRequest]
) -> Iterator[Answer]:
    """Answers of a local cross-encoder."""
    batches = _Batches(requests, collection)
    make = partial(_ScoreBatch, str(resolve(config.path)), config.batch_size)
    for number, scores in run_items(make, batches, title="scoring", actors=actors, progress=False):
        left = iter(scores)
        for request in batches.requests(number):
            positives = list(islice(left, len(request.positives)))
            yield request, positives, list(islice(left, len(request.documents)))


@dataclass(frozen=True)
class _Batches(Sequence[tuple[int, list[tuple[str, str]]]]):
    """Number, and queries and texts to score, of each batch of requests; made when it is taken."""

    of: Sequence[RescoringRequest]
    collection: Collection

    def __len__(self) -> int:
        return -(-len(self.of) // _QUERIES_PER_BATCH)

    def requests(self, number: int) -> Sequence[RescoringRequest]:
        return self.of[number * _QUERIES_PER_BATCH : (number + 1) * _QUERIES_PER_BATCH]

    def __getitem__(self, number: Any) -> Any:
        pairs = []
        for request in self.requests(number):
            query = self.collection.queries[request.query].as_py()
            texts = self.collection.documents.take([*request.positives, *request.documents]).to_pylist()
            pairs += [(query, text) for text in texts]
        return number, pairs


class _ScoreBatch:
    """Scores pairs of query and text with a cross-encoder; an actor's worker."""

    def __init__(self, folder: str, batch_size: int):
        self._folder, self._batch_size = folder, batch_size

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import CrossEncoder as Model

        device = str(resolve_device("auto"))
        model = Model(str(fetch(self._folder)), device=device, trust_remote_code=False, local_files_only=True)
        if model.num_labels != 1:
            raise DataError(f"{self._folder} gives {model.num_labels} scores for a pair; use a reranker")
        return model

    def __call__(self, item: tuple[int, list[tuple[str, str]]]) -> tuple[int, list[float]]:
        import torch

        number, pairs = item
        scores = self._model.predict(
            pairs, batch_size=self._batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        return number, scores.tolist()
