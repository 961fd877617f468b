"""Rows completed with hard negatives: filter the candidates of each query, combine teachers, sample.

Shapes: C candidates of one query by one teacher, best first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np
import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.data.bm25 import BM25Index, best_documents
from rayembed.mining.candidates import Candidates
from rayembed.mining.collection import Collection, collect
from rayembed.mining.config import SourceMining
from rayembed.mining.filters import FilterConfig, passes
from rayembed.mining.report import Audit, Choice, MiningReport
from rayembed.records.schema import to_table

_NONE = np.empty(0, dtype=np.int64)

PairScorer = Callable[[int, Sequence[int]], Sequence[float]]
"""(query, documents) -> a teacher's score of each document, not a number where there is none."""


def mine_bm25(
    table: pa.Table,
    *,
    negatives_per_query: int,
    top_k: int = 30,
    positive_share: float = 0.95,
    seed: int,
) -> tuple[pa.Table, MiningReport]:
    """Complete every row of a pair table to `negatives_per_query` negatives and report what was found.

    The corpus is the documents of all rows. The `top_k` best documents for a query, its own positives not
    counted, are its candidates. Those that score `positive_share` of its best positive or more are rejected;
    the best of the others become negatives. Rows that are still short get random documents that were no
    candidates. Negatives a row already has are kept.

    Raises DataError when the corpus has no words or is too small to complete a row.
    """
    settings = SourceMining(
        source="in-memory",
        top_k=top_k,
        negatives_per_query=negatives_per_query,
        filters=(FilterConfig(name="percentage", value=positive_share),),
    )
    collection = collect(table)
    choices: list[Choice] = []
    mined = list(
        complete_rows(
            table, collection, _found_by_words(collection, top_k), settings, seed=seed, choices=choices
        )
    )
    return pa.concat_tables(mined), MiningReport.of(choices, documents=len(collection.documents))


def complete_rows(
    table: pa.Table,
    collection: Collection,
    found: Iterator[tuple[Candidates, ...]],
    settings: SourceMining,
    *,
    seed: int,
    choices: list[Choice],
    checked: Mapping[int, Set[int]] | None = None,
    promoted: Mapping[int, Set[int]] | None = None,
    pair_scores: PairScorer | None = None,
    audit: Audit | None = None,
    chunk: int = 8192,
) -> Iterator[pa.Table]:
    """Yield the rows with negatives filled in, in tables of the rows of `chunk` queries.

    Rows come in the order of their queries' first appearance. Negatives that a row has already stay. Rows
    that fail the round trip of the settings are left out.

    Args:
        table: rows in the pair layout.
        collection: made from `table`.
        found: candidates of each query in order, one item a teacher.
        settings: filters, sampling and fill.
        seed: decides what is sampled and filled.
        choices: gets one item for each row that is kept.
        checked: query -> documents that rescoring found to be wrong: no others become negatives. None: all
            that pass the filters may.
        promoted: query -> documents that become positives of its rows, behind those that are there.
        pair_scores: scores of a query and documents, which become the rows' teacher_scores.
        audit: gets every query's candidates and choice.
        chunk: queries of a table.

    Raises:
        DataError: a row must be completed at random and the collection is too small.
    """
    chooser = _Chooser(collection, settings, seed=seed, checked=checked, promoted=promoted)
    for start in range(0, len(collection.queries), chunk):
        stop = min(start + chunk, len(collection.queries))
        kept: list[int] = []
        chosen: list[tuple[list[int], list[int]]] = []
        scores: list[Sequence[float] | None] = []
        for query in range(start, stop):
            candidates = next(found)
            for one in chooser(query, candidates):
                choices.append(one.choice)
                if audit is not None:
                    audit.add(query, candidates, one.choice)
                negatives = [*one.given, *one.choice.mined, *one.choice.fills]
                kept.append(one.row)
                chosen.append((one.added, negatives))
                documents = [*one.own, *one.added, *negatives]
                scores.append(pair_scores(query, documents) if pair_scores is not None else None)
        if kept:
            yield _with_documents(table.take(kept), collection, chosen, scores)


def short_queries(
    collection: Collection,
    queries: np.ndarray,
    found: Iterator[tuple[Candidates, ...]],
    settings: SourceMining,
    checked: Mapping[int, Set[int]] | None = None,
) -> np.ndarray:
    """Queries of which a row gets fewer negatives than it wants, in their order.

    Args:
        collection: of all queries.
        queries: those to look at.
        found: candidates of each of them, one item a teacher.
        settings: filters and sampling.
        checked: as `complete_rows` takes it.
    """
    chooser = _Chooser(collection, settings.model_copy(update={"fill": "none"}), seed=0, checked=checked)
    pairs = zip(queries.tolist(), found, strict=True)
    return np.array(
        [query for query, one in pairs if any(row.choice.short for row in chooser(query, one))],
        dtype=np.int64,
    )


@dataclass(frozen=True)
class _Row:
    """A row: its positives and those it gets, the negatives it keeps, and those that are chosen for it."""

    row: int
    own: list[int]
    added: list[int]
    given: list[int]
    choice: Choice


class _Chooser:
    """Chooses the negatives of a query's rows; those that fail the round trip are left out."""

    def __init__(
        self,
        collection: Collection,
        settings: SourceMining,
        *,
        seed: int,
        checked: Mapping[int, Set[int]] | None = None,
        promoted: Mapping[int, Set[int]] | None = None,
    ):
        self._settings, self._size = settings, len(collection.documents)
        self._checked, self._promoted = checked, promoted or {}
        self._order = np.argsort(collection.query_of_row, kind="stable")
        queries = np.arange(len(collection.queries) + 1)
        self._bounds = np.searchsorted(collection.query_of_row[self._order], queries)
        self._never = collection.excluded.finder()
        rows = len(collection.query_of_row)
        self._given, self._own = _grouped(*collection.given, rows), _grouped(*collection.own, rows)
        self._generator = np.random.default_rng(seed)

    def __call__(self, query: int, candidates: tuple[Candidates, ...]) -> Iterator[_Row]:
        excluded, settings = self._never(query), self._settings
        for row in self._order[self._bounds[query] : self._bounds[query + 1]].tolist():
            own = self._own[row].tolist()
            if not found_back(candidates, own, settings.round_trip):
                continue
            added = sorted(self._promoted.get(query, set()) - set(own))
            given = [one for one in self._given[row].tolist() if one not in added]
            given = given[: settings.negatives_per_query]
            choice = choose(
                candidates,
                settings,
                wanted=settings.negatives_per_query - len(given),
                taken=set(given),
                never=excluded,
                size=self._size,
                generator=self._generator,
                own=own,
                among=self._checked.get(query, set()) if self._checked is not None else None,
            )
            yield _Row(row, own, added, given, choice)


def found_back(found: Sequence[Candidates], positives: Sequence[int], within: int | None) -> bool:
    """Whether some teacher ranks one of these positives among its first `within`; None asks nothing."""
    return within is None or any(one.ranks(positives, within) for one in found)


def choose(
    found: Sequence[Candidates],
    settings: SourceMining,
    *,
    wanted: int,
    taken: Set[int],
    size: int,
    generator: np.random.Generator,
    never: np.ndarray = _NONE,
    own: Sequence[int] = (),
    among: Set[int] | None = None,
) -> Choice:
    """Choose the negatives of one row.

    Teachers take turns: the best of each, then the second best of each, every document once. A document that
    a calibrated teacher's filters reject is rejected for all of them, if that teacher finds the positive. Two
    teachers, of which the second scores the positive below all its candidates:

        cosines  [7, 8, 9]  positive 0.9, filters reject 7    8 and 9 are left, 7 is out for both
        BM25     [7, 8, 5]  positive 0.0, filters reject all  offers nothing and vetoes nothing: 8 stays

    Args:
        found: candidates of the row's query, one item a teacher.
        settings: filters, sampling and fill.
        wanted: how many negatives to choose.
        taken: documents that the row has.
        never: documents that are no candidates of the query.
        size: number of documents in the collection.
        generator: decides what is sampled and filled.
        own: positives of the row, which the filters compare with if `anchor` is own.
        among: the only candidates that may be chosen; None: any.

    Raises:
        DataError: the row must be completed at random and the collection is too small.
    """
    offers, vetoed = [], set(taken)
    all_candidates: set[int] = set()
    for one in found:
        anchor = one.anchor(settings.anchor, own)
        keep = passes(one.scores, anchor, settings.filters)
        offers.append(
            [(rank, document) for rank, document in enumerate(one.documents.tolist(), 1) if keep[rank - 1]]
        )
        all_candidates |= set(one.documents.tolist())
        if one.may_veto(settings.top_k, anchor):
            vetoed |= set(one.documents[~keep].tolist())
    ranked = _in_turns(offers, vetoed)
    rejected = (
        all_candidates - {document for offer in offers for _, document in offer} | vetoed & all_candidates
    )
    if among is not None:
        ranked = [(rank, document) for rank, document in ranked if document in among]
    if settings.sample_from is not None and len(ranked) > wanted:
        pool = ranked[: settings.sample_from]
        drawn = generator.choice(len(pool), size=min(wanted, len(pool)), replace=False)
        ranked = [pool[position] for position in sorted(drawn.tolist())]
    mined = [document for _, document in ranked[:wanted]]
    fills = []
    if settings.fill == "random" and len(mined) < wanted:
        fills = random_documents(
            size, wanted - len(mined), taken | all_candidates | set(never.tolist()), generator
        )
    return Choice(
        mined=mined,
        ranks=[rank for rank, _ in ranked[:wanted]],
        fills=fills,
        candidates=len(all_candidates),
        rejected=len(rejected - taken),
        short=len(mined) < wanted,
    )


def random_documents(size: int, count: int, excluded: Set[int], generator: np.random.Generator) -> list[int]:
    """Draw `count` different positions below `size` that are not excluded.

    Raises:
        DataError: there are not so many.
    """
    if size - len(excluded) < count:
        raise DataError(
            f"a row needs {count} more negatives and the source has {size - len(excluded)} other documents; "
            "lower negatives_per_query or add data"
        )
    picks: list[int] = []
    while len(picks) < count:
        pick = int(generator.integers(size))
        if pick not in excluded and pick not in picks:
            picks.append(pick)
    return picks


def _found_by_words(collection: Collection, top_k: int) -> Iterator[tuple[Candidates]]:
    search = BM25Index(collection.documents.to_pylist())
    positives = _grouped(*collection.positives, len(collection.queries))
    never = collection.excluded.finder()
    for query, scores in enumerate(search.scores(collection.queries.to_pylist())):
        best = best_documents(scores, top_k, never(query))
        known = positives[query]
        yield (Candidates(best, scores[best], known, scores[known], calibrated=False),)


def _in_turns(offers: Sequence[Sequence[tuple[int, int]]], left_out: Set[int]) -> list[tuple[int, int]]:
    """(rank, document) of the offers of all teachers in turns, every document the first time it comes.

    With 7, 8, 9 of one teacher, 7, 5, 8 of another and 9 left out: (1, 7), (2, 8), (2, 5).
    """
    ranked: dict[int, int] = {}
    lists = [[item for item in offer if item[1] not in left_out] for offer in offers]
    for turn in zip_longest(*lists):
        for item in turn:
            if item is not None:
                ranked.setdefault(item[1], item[0])
    return [(rank, document) for document, rank in ranked.items()]


def _with_documents(
    rows: pa.Table,
    collection: Collection,
    chosen: Sequence[tuple[Sequence[int], Sequence[int]]],
    scores: Sequence[Sequence[float] | None],
) -> pa.Table:
    """Rows with further positives, and with negatives in place of theirs, and scores of all documents."""
    documents = pa.array([document for both in chosen for side in both for document in side], pa.int64())
    texts = iter(collection.documents.take(documents).to_pylist())
    ids = iter(collection.document_ids.take(documents).to_pylist())
    completed = []
    for row, (added, negatives), new_scores in zip(rows.to_pylist(), chosen, scores, strict=True):
        positive_ids = row["document_ids"][: len(row["positives"])]
        document_ids = [*positive_ids, *islice(ids, len(added) + len(negatives))]
        completed.append(
            row
            | {
                "positives": [*row["positives"], *islice(texts, len(added))],
                "negatives": list(islice(texts, len(negatives))),
                "document_ids": document_ids,
                # Scores belong to documents; those of the rows themselves say nothing of new ones.
                "teacher_scores": new_scores
                or (row["teacher_scores"] if document_ids == row["document_ids"] else None),
            }
        )
    return to_table(completed, "pairs")


def _grouped(keys: np.ndarray, values: np.ndarray, count: int) -> Sequence[np.ndarray]:
    """Values of each key from 0 to `count`."""
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.searchsorted(keys[order], np.arange(1, count)))
