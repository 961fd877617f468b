"""Rows from the user's own passages: a model writes queries, a search checks them, another model relabels.

A query stays if the search finds its passage among the first `round_trip` documents of the corpus. What a
judge or reranker finds right among the others becomes a positive, what it finds wrong a negative. With
`round_trip: 2`:

    passage  query                 search finds  judge says        row
    p1       how to open a lock    p1, p7, p4    p7 yes, p4 no     positives p1 and p7, negative p4
    p2       what does it cost     p9, p5, p2    is not asked      dropped and counted

The folder `OUTPUT/grounded` is that of a mined source, with the counts of the writing in `queries.json`.
"""

import hashlib
import heapq
import json
import logging
from functools import partial
from pathlib import Path

import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.common.paths import atomic_write, resolve
from rayembed.config.data import DataConfig, UserSourceConfig
from rayembed.data.plan import fingerprint
from rayembed.mining.collection import read_corpus
from rayembed.mining.config import MiningRecipe, SourceMining
from rayembed.mining.filters import FilterConfig
from rayembed.mining.run import mine
from rayembed.records.schema import PAIR_SCHEMA, document_id, pair_row
from rayembed.synthesis.answers import WORK, Ledger, Spending, draws, identity
from rayembed.synthesis.config import Grounding, SynthesisRecipe
from rayembed.synthesis.kinds import LIST_FIELDS, LONG_WORDS, count_words, grounded_prompt, parse_tasks
from rayembed.synthesis.report import KindReport, SynthesizedSource, write_parquet

logger = logging.getLogger(__name__)

NAME = "grounded"
_TOP_K = 100  # documents of a search


def ground(recipe: SynthesisRecipe, settings: Grounding, spending: Spending) -> SynthesizedSource | None:
    """Make rows for sampled passages; None where `max_cost` was reached before the first query.

    Raises:
        DataError: no passage can be used, no query leads to its passage, or no answer can be used.
        ResourceError: an endpoint fails; the answers so far are kept.
    """
    folder = resolve(recipe.output) / NAME
    corpus = read_corpus(settings.corpus, settings.column)
    passages = sample_passages(corpus, settings.passages, recipe.seed)
    made_from: dict[str, object] = {
        "generator": identity(recipe.generator),
        "seed": recipe.seed,
        "queries": settings.queries_per_passage,
    }
    ledger = Ledger(folder / WORK / fingerprint(made_from)[:12] / "queries.jsonl", spending)
    prompts = {name: partial(_prompt, recipe, settings, name, text) for name, text in passages.items()}
    ledger.ask(recipe.generator, prompts, parse_tasks, fields=LIST_FIELDS, seed=recipe.seed)
    queries = {name: ledger.accepted.get(name, [])[: settings.queries_per_passage] for name in passages}
    written: dict[str, str] = {}  # query -> its passage
    for name, texts in queries.items():
        for text in texts:
            written.setdefault(text, name)
    if not written and spending.over:
        return None
    if not written:
        raise DataError(f"{NAME}: none of {ledger.usage.answers} answers can be used; use a stronger model")
    rows = [
        pair_row(
            query,
            [passages[name]],
            [],
            dataset=f"{recipe.name}-{NAME}",
            task_type="retrieval",
            instruction=settings.instruction,
        )
        for query, name in written.items()
    ]
    pairs = write_parquet(pa.Table.from_pylist(rows, PAIR_SCHEMA), folder / WORK / "written.parquet")
    texts = write_parquet(pa.table({"text": corpus}), folder / WORK / "corpus.parquet")
    (mined,) = mine(_mining(recipe, settings, pairs, texts, folder))
    report = KindReport.of(
        NAME,
        tasks=len(passages),
        rows=mined.report.rows,
        exact_duplicates=sum(map(len, queries.values())) - len(written),
        near_duplicates=0,
        usage=ledger.usage,
        not_found=len(written) - mined.report.rows,
    )
    atomic_write(folder / "queries.json", json.dumps(report.to_dict(), indent=2) + "\n")
    logger.info("%s: %s", NAME, report)
    return SynthesizedSource(mined.path, report)


def sample_passages(corpus: pa.Array, count: int, seed: int) -> dict[str, str]:
    """Content hash -> text of `count` passages of at least `LONG_WORDS` words.

    They are those with the smallest hashes of seed and text: a larger sample, or one of a corpus that has
    grown, holds most of the smaller one, whose queries are written already.

    Raises:
        DataError: no document is long enough.
    """
    long = {
        document_id(text): text
        for text in (text.as_py() for text in corpus)
        if count_words(text) >= LONG_WORDS
    }
    if not long:
        raise DataError(f"none of {len(corpus)} documents has {LONG_WORDS} words; give longer passages")
    chosen = heapq.nsmallest(count, long, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    logger.info("%d of %d documents are sampled; %d have enough words", len(chosen), len(corpus), len(long))
    return {name: long[name] for name in chosen}


def _prompt(recipe: SynthesisRecipe, settings: Grounding, name: str, passage: str, attempt: int) -> str:
    generator = draws(name, recipe.seed, attempt)
    return grounded_prompt(passage, count=settings.queries_per_passage, generator=generator)


def _mining(
    recipe: SynthesisRecipe, settings: Grounding, pairs: Path, corpus: Path, folder: Path
) -> MiningRecipe:
    """Mining that checks and completes the written rows. A judge is to see what scores above the passage."""
    judge = settings.rescoring
    source = SourceMining(
        source=NAME,
        instruction=settings.instruction,
        corpus=str(corpus),
        top_k=max(_TOP_K, settings.round_trip),
        round_trip=settings.round_trip,
        negatives_per_query=settings.negatives_per_query,
        filters=(FilterConfig(name="naive" if judge is not None else "percentage"),),
        fill="none",
    )
    return MiningRecipe(
        output=str(folder.parent),
        seed=recipe.seed,
        data=DataConfig(
            directory=str(folder / WORK / "data"), sources={NAME: UserSourceConfig(path=str(pairs))}
        ),
        teachers={"search": settings.teacher},
        sources=(source,),
        rescoring=judge.model_copy(update={"promote": True}) if judge is not None else None,
        actors=settings.actors,
    )
