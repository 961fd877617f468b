"""A mining run: collect, encode, search, choose, report; every part that is on disk already is reused.

Folder of a source:

- `train.parquet`: the rows with negatives and a teacher's scores, an ordinary source;
- `report.json`, `report.md`: what was found and chosen;
- `work/`: texts, vectors and candidates with scores. Filters are run again on the candidates alone.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.errors import DataError, all_mistakes
from rayembed.common.paths import atomic_file, atomic_write, fetch, resolve
from rayembed.data.store import read_parquet
from rayembed.mining.approximate import Approximation, load_faiss
from rayembed.mining.candidates import PairScores, SearchJob, measured_recall
from rayembed.mining.collection import Collection, collect, read_corpus, read_pairs, source_mistakes
from rayembed.mining.config import BM25Teacher, CrossEncoder, MiningRecipe, SourceMining, Teacher
from rayembed.mining.finding import find_candidates, write_pairs
from rayembed.mining.report import Audit, Choice, MiningReport, markdown
from rayembed.mining.rescoring import RescoringResult, rescore
from rayembed.mining.rows import PairScorer, complete_rows, short_queries
from rayembed.mining.teachers import VectorJob, encode, prepare_teacher, write_texts
from rayembed.mining.windows import MOST_WINDOWS, Window, widest
from rayembed.records.schema import PAIR_SCHEMA, document_id

logger = logging.getLogger(__name__)

RESULT_FILE = "train.parquet"
REPORT_FILE = "report.md"  # is written last


@dataclass(frozen=True)
class MinedSource:
    """Result of one source: its Parquet file and its counts."""

    name: str
    path: Path
    report: MiningReport


def mine(recipe: MiningRecipe, *, filters_only: bool = False) -> list[MinedSource]:
    """Mine all sources of a recipe.

    Args:
        recipe: teachers, sources, filters.
        filters_only: refuse to encode or search; use the candidates of an earlier run.

    Raises:
        DataError: a source or a teacher cannot be read, is too small, or has no stored candidates.
        ResourceError: an endpoint does not answer, or a package is missing.
    """
    teachers = _prepared_teachers(recipe)
    return [_mine_source(recipe, entry, teachers, filters_only) for entry in recipe.sources]


def _prepared_teachers(recipe: MiningRecipe) -> dict[str, Teacher]:
    """Teachers by name; all that a recipe names is looked for before the first hour of encoding.

    Raises:
        DataError: all teachers, sources and files that are not there.
    """
    if any(entry.index != "exact" for entry in recipe.sources):
        load_faiss()  # or refuse before the first hour of encoding
    models_dir = resolve(recipe.models_directory)
    mistakes: list[str] = []
    teachers: dict[str, Teacher] = {}
    for name, teacher in recipe.teachers.items():
        try:
            if not isinstance(teacher, BM25Teacher):
                teacher = prepare_teacher(teacher, models_dir)
            teachers[name] = teacher
        except DataError as error:
            mistakes.append(f"teacher {name}: {error}")
    for entry in recipe.sources:
        mistakes += source_mistakes(recipe.data, entry)
    judge = recipe.rescoring
    if (
        isinstance(judge, CrossEncoder)
        and not (fetch(resolve(judge.path), weights=False) / "config.json").is_file()
    ):
        mistakes.append(f"rescoring: {resolve(judge.path)} is no folder of a cross-encoder")
    if mistakes:
        raise DataError(all_mistakes("mining recipe", mistakes))
    return teachers


def _mine_source(
    recipe: MiningRecipe, entry: SourceMining, teachers: Mapping[str, Teacher], filters_only: bool
) -> MinedSource:
    folder = resolve(recipe.output) / entry.source
    table = read_pairs(recipe.data, entry.source)
    collection = collect(table, read_corpus(entry.corpus) if entry.corpus else None)
    chosen = {name: teachers[name] for name in entry.teachers or teachers}
    searches = _searches(collection, entry, chosen, folder / "work")
    for name, search in searches.items():
        if filters_only and not _is_stored(search):
            raise DataError(
                f"{folder} has no complete candidates of teacher {name} for these rows; run once without "
                "--filters-only"
            )
        _find(recipe, entry, name, chosen[name], search)
    windows = [Window(entry.top_k, np.arange(len(collection.queries)), searches)]
    promote = recipe.rescoring is not None and recipe.rescoring.promote
    while True:
        rescoring = None
        if recipe.rescoring is not None:
            rescoring = rescore(
                recipe.rescoring, entry, collection, widest(windows), folder / "work", actors=recipe.actors
            )
        wider = _wider(recipe, entry, chosen, collection, windows, rescoring, folder / "work", filters_only)
        if wider is None:
            break
        windows.append(wider)
    audit = Audit(list(chosen), entry, _known(collection, entry))
    choices: list[Choice] = []
    rows = complete_rows(
        table,
        collection,
        widest(windows),
        entry,
        seed=recipe.seed,
        choices=choices,
        checked=rescoring.wrong if rescoring is not None else None,
        promoted=rescoring.right if rescoring is not None and promote else None,
        pair_scores=_pair_scores(searches, rescoring),
        audit=audit,
    )
    _write_rows(rows, folder / RESULT_FILE)
    report = MiningReport.of(choices, documents=len(collection.documents))
    dropped = table.num_rows - report.rows
    summary = audit.summary() | {
        "rescoring": (rescoring or RescoringResult()).summary(),
        "round_trip": {"dropped": dropped},
        "widened": {window.top_k: len(window.queries) for window in windows[1:]},
        "recall": {
            name: measured_recall(search) for name, search in searches.items() if search.approximation
        },
    }
    if not choices:
        raise DataError(
            f"source {entry.source}: no positive is among the first {entry.round_trip} of its query; raise "
            "round_trip, or look at the rows: their queries do not lead to their positives"
        )
    if dropped:
        logger.info("source %s: %d rows fail the round trip and are dropped", entry.source, dropped)
    content = {"counts": asdict(report), "settings": entry.model_dump(mode="json"), **summary}
    atomic_write(folder / "report.json", json.dumps(content, indent=2) + "\n")
    atomic_write(folder / REPORT_FILE, markdown(entry.source, report, entry.negatives_per_query, summary))
    logger.info("source %s: %s", entry.source, report)
    return MinedSource(entry.source, folder / RESULT_FILE, report)


def _wider(
    recipe: MiningRecipe,
    entry: SourceMining,
    teachers: Mapping[str, Teacher],
    collection: Collection,
    windows: Sequence[Window],
    rescoring: RescoringResult | None,
    work: Path,
    filters_only: bool,
) -> Window | None:
    """The next window, searched; None where it has no queries, or no further documents."""
    last = windows[-1]
    checked = rescoring.wrong if rescoring is not None else None
    short = short_queries(collection, last.queries, last.candidates(), entry, checked)
    # Random documents that fill rows are no candidates, so half of the documents are left to them.
    most = len(collection.documents) if entry.fill == "none" else len(collection.documents) // 4
    if not len(short) or last.top_k >= most or len(windows) == MOST_WINDOWS:
        return None
    wider = entry.model_copy(update={"top_k": 2 * last.top_k})
    folder = work / f"top-{wider.top_k}"
    searches = _searches(collection.of_queries(short), wider, teachers, folder, work)
    if filters_only and not all(map(_is_stored, searches.values())):
        logger.warning(
            "source %s: %d queries have too few negatives among their first %d candidates; without "
            "--filters-only more would be searched for them", entry.source, len(short), last.top_k,
        )  # fmt: skip
        return None
    logger.info(
        "source %s: %d queries have too few negatives among %d candidates; looking at %d",
        entry.source, len(short), last.top_k, wider.top_k,
    )  # fmt: skip
    for name, search in searches.items():
        if search.queries is not None and not _is_stored(search):
            whole = windows[0].searches[name].queries
            assert whole is not None
            search.queries.take(whole, short)
        _find(recipe, wider, name, teachers[name], search)
    return Window(wider.top_k, short, searches)


def _is_stored(search: SearchJob) -> bool:
    return all(fetch(path).is_file() for path in search.parts)


def _pair_scores(searches: Mapping[str, SearchJob], rescoring: RescoringResult | None) -> PairScorer | None:
    """The scores that distillation learns from: of the reranker, else of the first teacher with vectors."""
    if rescoring is not None and rescoring.scores:
        return rescoring.pair_scores
    for search in searches.values():
        if search.queries is not None and search.documents is not None:
            return PairScores(search.queries, search.documents)
    return None


def _searches(
    collection: Collection,
    entry: SourceMining,
    teachers: Mapping[str, Teacher],
    work: Path,
    of_all: Path | None = None,
) -> dict[str, SearchJob]:
    """Job of each teacher; the texts and pairs that they read are written.

    Args:
        collection: what is searched.
        entry: settings of the source.
        teachers: by name.
        work: where everything goes.
        of_all: where the documents and their vectors are already; None: nowhere.
    """
    queries = write_texts(collection.queries, work / "queries.parquet", collection.instructions)
    if of_all is None:
        documents = write_texts(collection.documents, work / "documents.parquet")
    else:
        documents = of_all / "documents.parquet"
    pairs = write_pairs(collection, work / "pairs.npz")
    approximation = None
    if entry.index != "exact":
        approximation = Approximation(entry.index, entry.nprobe, entry.efSearch)
    searches = {}
    for name, teacher in teachers.items():
        vectors: tuple[VectorJob | None, VectorJob | None] = None, None
        if not isinstance(teacher, BM25Teacher):
            document_instruction = _document_instruction(collection, entry) if entry.symmetric else None
            vectors = (
                VectorJob.of(queries, work / name, teacher, "query", entry.instruction),
                VectorJob.of(documents, (of_all or work) / name, teacher, "document", document_instruction),
            )
        searches[name] = SearchJob(
            queries,
            documents,
            *vectors,
            pairs,
            entry.top_k,
            (of_all or work) / name,
            approximation if vectors[0] else None,
        )
    return searches


def _document_instruction(collection: Collection, entry: SourceMining) -> str | None:
    """Of a symmetric source: the instruction that all queries carry, else the source's, with a warning."""
    carried = {own or entry.instruction for own in collection.instructions.unique().to_pylist()}
    if len(carried) == 1:
        return carried.pop()
    logger.warning(
        "source %s is symmetric and its queries carry %d instructions; every document is encoded once, with "
        "that of the source (%s); mine the rows of each instruction as a source of their own to have both "
        "sides alike",
        entry.source, len(carried), entry.instruction,
    )  # fmt: skip
    return entry.instruction


def _find(recipe: MiningRecipe, entry: SourceMining, name: str, teacher: Teacher, search: SearchJob) -> None:
    """Encode and search whatever is not on disk yet."""
    if _is_stored(search):
        logger.info("source %s, teacher %s: candidates are there already", entry.source, name)
        return
    title = f"source {entry.source}, teacher {name}"
    if not isinstance(teacher, BM25Teacher):
        assert search.queries is not None
        assert search.documents is not None
        encode(teacher, (search.queries, search.documents), actors=recipe.actors, title=f"{title}, encoding")
    find_candidates(search, actors=recipe.actors, title=f"{title}, search")
    if (recall := measured_recall(search)) is not None:
        key = "nprobe" if entry.index == "ivf" else "efSearch"
        logger.info(
            "%s: %s finds %.1f %% of the exact results, measured on a sample of the queries; %s raises it",
            title, entry.index, 100 * recall, key,
        )  # fmt: skip


def _known(collection: Collection, entry: SourceMining) -> dict[int, Set[int]] | None:
    """Further right documents of each query, as positions; None where the entry declares none."""
    if entry.known_positives is None:
        return None
    path = fetch(resolve(entry.known_positives))
    table = read_parquet(path)
    if not {"query", "positives"} <= set(table.column_names):
        raise DataError(f"{path} needs the columns query and positives; it has {table.column_names}")
    queries_at: defaultdict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(collection.queries.to_pylist()):
        queries_at[document_id(text)].append(number)
    document_at = {key: number for number, key in enumerate(collection.document_ids.to_pylist())}
    known: dict[int, Set[int]] = {}
    for row in table.select(["query", "positives"]).to_pylist():
        found = {document_at.get(document_id(text)) for text in row["positives"]}
        for query in queries_at.get(document_id(row["query"]), ()):
            known[query] = set(known.get(query, ())) | {number for number in found if number is not None}
    return known


def _write_rows(tables: Iterator[pa.Table], path: Path) -> None:
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, PAIR_SCHEMA, compression="zstd") as writer,
    ):
        for table in tables:
            writer.write_table(table)
