"""Collation against a brute-force reading of the same batch; texts are compared, not positions."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest

from rayembed.config.blend import SourceConfig
from rayembed.contract import Contract
from rayembed.data.choose import ChosenRow, RowChooser
from rayembed.data.collate import TrainingBatch, candidate_mask, to_training_batch
from rayembed.data.lanes import LaneCutter, TextReader
from rayembed.data.plan import PlannedBatch
from rayembed.data.prepared import PreparedRows
from rayembed.data.stream import local_batches
from rayembed.records.schema import pair_row, to_table
from tests.tiny import make_tokenizer
from tests.training.sources import stage, stream_spec

TOKENIZER = make_tokenizer()
CONTRACT = Contract(max_length=120)


def table(*rows: tuple[str, list[str], list[str]]) -> pa.Table:
    return to_table((pair_row(*row, dataset="tiny", task_type="retrieval") for row in rows), "pairs")


BLEND = (
    SourceConfig(
        source="pairs", weight=1, instruction="find", in_batch_negatives=True, negatives_per_query=2
    ),
    SourceConfig(source="plain", weight=1, in_batch_negatives=False, negatives_per_query=1),
    SourceConfig(
        source="classes",
        weight=1,
        instruction="sort",
        symmetric=True,
        in_batch_negatives=True,
        negatives_per_query=1,
    ),
)
TABLES = (
    table(
        ("q0", ["shared", "second"], ["n0", "n1", "n2"]),
        ("q1", ["second"], []),
        ("q2", ["p2"], ["shared", "n0"]),
        ("q3", ["p3"], ["p2", "class a"]),
    ),
    table(("q4", ["p4"], ["p2", "n4"]), ("q5", ["shared"], ["n4"]), ("q6", ["p6"], ["p4"])),
    table(
        ("t0", ["class a"], ["class b"]), ("t1", ["class b"], ["class a"]), ("t2", ["shared"], ["class b"])
    ),
)
SOURCES = [PreparedRows(rows.to_batches(max_chunksize=3)) for rows in TABLES]
BATCH = PlannedBatch(
    step=5, sources=np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2]), rows=np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 2])
)
Document = tuple[str, str]  # text and the instruction in front of it


@dataclass
class Part:
    """What one rank was given, decoded."""

    batch: TrainingBatch
    queries: list[str]
    documents: list[Document]


def cutter(sources, blend, *, lanes: int = 10, seed: int = 1) -> LaneCutter:
    return LaneCutter(RowChooser(sources, blend, seed=seed), blend, TextReader(CONTRACT, TOKENIZER), lanes)


def of_rank(lanes: pa.Table, rank: int, world_size: int) -> pa.Table:
    return lanes.take(list(range(rank, len(lanes), world_size)))


def collate(world_size: int, *, step: int = 5, seed: int = 1) -> list[Part]:
    parts = []
    lanes = cutter(SOURCES, BLEND, seed=seed).cut(replace(BATCH, step=step))
    for rank in range(world_size):
        batch = to_training_batch(step, of_rank(lanes, rank, world_size), rank=rank, world_size=world_size)
        packed = batch.packed
        ids = packed.input_ids_T.split(packed.lengths.texts)
        texts = [TOKENIZER.decode(ids[position], skip_special_tokens=True) for position in packed.order_N]
        documents = [split_instruction(text) for text in texts[batch.num_queries :]]
        parts.append(Part(batch, texts[: batch.num_queries], documents))
    return parts


def split_instruction(text: str) -> Document:
    for instruction in ("find", "sort"):
        if text.startswith(prefix := CONTRACT.prefix(instruction)):
            return text.removeprefix(prefix), instruction
    return text, ""


def row_of(part: Part, query: int) -> tuple[SourceConfig, dict]:
    source = int(part.batch.source_Q[query])
    return BLEND[source], TABLES[source].slice(part.batch.rows[query], 1).to_pylist()[0]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_each_distinct_document_is_encoded_once_by_one_worker(world_size):
    parts = collate(world_size)
    documents = [document for part in parts for document in part.documents]
    assert len(set(documents)) == len(documents)
    assert set(documents) == set(collate(1)[0].documents)
    assert {("shared", ""), ("shared", "sort")} <= set(documents)  # another instruction, another vector
    for part in parts:
        assert part.batch.document_counts == [len(other.documents) for other in parts]
        assert part.batch.query_counts == [len(other.queries) for other in parts]
    assert max(part.batch.num_queries for part in parts) - min(part.batch.num_queries for part in parts) <= 1


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_long_documents_are_spread_over_the_workers(world_size):
    """Every sixth row has a long document, so that turns of two or three workers give them all to one."""
    texts = [" ".join([f"word{row}"] * (25 if row % 6 == 0 else 2)) for row in range(36)]
    source = PreparedRows(table(*((f"q{row}", [text], []) for row, text in enumerate(texts))).to_batches())
    batch = PlannedBatch(step=0, sources=np.zeros(36, dtype=int), rows=np.arange(36))
    tokens, lanes = [], cutter([source], BLEND[:1], lanes=36).cut(batch)
    for rank in range(world_size):
        own = of_rank(lanes, rank, world_size)
        tokens.append(to_training_batch(0, own, rank=rank, world_size=world_size).packed.num_tokens)
    longest = len(CONTRACT.tokenize(TOKENIZER, [texts[0]], None).input_ids[0])
    assert max(tokens) - min(tokens) < longest


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_workers_share_the_rows_of_the_plan(world_size):
    parts = collate(world_size)
    rows = [
        (int(source), row)
        for part in parts
        for source, row in zip(part.batch.source_Q, part.batch.rows, strict=True)
    ]
    assert sorted(rows) == BATCH.pairs()
    for part in parts:
        for query, text in enumerate(part.queries):
            entry, row = row_of(part, query)
            assert text == CONTRACT.prefix(entry.instruction) + row["query"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_targets_and_candidates_are_right_by_their_texts(world_size, seed):
    parts = collate(world_size, seed=seed)
    documents = [document for part in parts for document in part.documents]
    for part in parts:
        for query in range(part.batch.num_queries):
            entry, row = row_of(part, query)
            instruction = entry.instruction if entry.symmetric else ""
            target = documents[part.batch.target_Q[query]]
            assert target in {(text, instruction) for text in row["positives"]}
            against = {
                document
                for position, document in enumerate(documents)
                if part.batch.allowed_QK[query, position] and document != target
            }
            if entry.in_batch_negatives:
                assert against == {document for document in documents if document[0] not in row["positives"]}
            else:
                assert len(against) == min(entry.negatives_per_query, len(row["negatives"]))
                assert against <= {(text, instruction) for text in row["negatives"]}
            assert part.batch.allowed_QK[query, part.batch.target_Q[query]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_only_queries_that_the_positive_does_not_answer_compete_for_it(world_size, seed):
    parts = collate(world_size, seed=seed)
    documents = [document for part in parts for document in part.documents]
    rows = [row_of(part, query) for part in parts for query in range(part.batch.num_queries)]
    for part in parts:
        for query in range(part.batch.num_queries):
            entry, _ = row_of(part, query)
            target, _ = documents[part.batch.target_Q[query]]
            expected = [
                entry.in_batch_negatives and other.in_batch_negatives and target not in row["positives"]
                for other, row in rows
            ]
            assert part.batch.competing_QB[query].tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_another_number_of_workers_compares_the_same_texts(seed):
    def comparisons(world_size: int) -> dict:
        parts = collate(world_size, seed=seed)
        documents = [document for part in parts for document in part.documents]
        return {
            text: (
                documents[part.batch.target_Q[query]],
                {documents[position] for position in part.batch.allowed_QK[query].nonzero()},
            )
            for part in parts
            for query, text in enumerate(part.queries)
        }

    assert comparisons(1) == comparisons(2) == comparisons(3) == comparisons(10)


def test_choices_depend_on_seed_and_step():
    def targets(**changes: int) -> list[Document]:
        [part] = collate(1, **changes)
        return part.documents

    assert targets() == targets()
    assert len({tuple(targets(seed=seed)) for seed in range(8)}) > 1
    assert len({tuple(targets(step=step)) for step in range(8)}) > 1


def test_every_row_draws_one_wording_for_its_query_and_its_own_documents():
    wordings = ("sort", "arrange", "put in order")
    entry = BLEND[2].model_copy(update={"paraphrases": wordings[1:], "in_batch_negatives": False})

    def chosen(step: int, seed: int = 1) -> list[ChosenRow]:
        chooser = RowChooser(SOURCES, (*BLEND[:2], entry), seed=seed)
        return [row for row in chooser.choose(replace(BATCH, step=step)) if row.source == 2]

    drawn = [row for step in range(8) for row in chosen(step)]
    assert {row.instruction for row in drawn} == set(wordings)
    for row in drawn:
        assert {instruction for _, instruction in (row.target, *row.negatives)} == {row.instruction}
    assert chosen(3) == chosen(3)
    assert any(chosen(step) != chosen(step, seed=2) for step in range(8))


def test_instructions_attend_but_are_not_pooled():
    [part] = collate(1)
    packed = part.batch.packed
    texts = [*((text, None) for text in part.queries), *part.documents]
    for (text, _), position in zip(texts, packed.order_N.tolist(), strict=True):
        pooled = packed.input_ids_T[packed.pooled_P[packed.text_index_P == position]]
        assert pooled[-1] == TOKENIZER.eos_token_id
        assert TOKENIZER.decode(pooled, skip_special_tokens=True).strip() == split_instruction(text)[0]


def test_teacher_scores_stand_where_their_documents_do(tmp_path, tiny_base):
    config = stage(batch_size=9)
    spec = stream_spec(tmp_path, tiny_base, config, teacher=True)
    [batch] = local_batches(spec, start=0, stop=1)
    without = 0
    for query in range(batch.num_queries):
        scored = ~batch.teacher_QK[query].isnan()
        if int(batch.source_Q[query]) == 1 or batch.rows[query] % 2 == 0:
            assert not scored.any()
            without += 1
            continue
        assert int(scored.sum()) == 3
        assert float(batch.teacher_QK[query, batch.target_Q[query]]) == pytest.approx(0.9)
        negatives = scored.clone()
        negatives[batch.target_Q[query]] = False
        expected = [0.1 * (batch.rows[query] % 5), 0.4]
        assert sorted(batch.teacher_QK[query][negatives].tolist()) == pytest.approx(sorted(expected))
    assert 0 < without < batch.num_queries


def test_a_row_with_an_instruction_is_trained_with_it():
    """In front of the query, and of the documents where the entry is symmetric; others take the entry's."""
    rows = [
        pair_row("q0", ["p0"], ["n0"], dataset="tiny", task_type="retrieval", instruction=instruction)
        for instruction in ("own", None)
    ]
    sources = [PreparedRows(to_table(rows, "pairs").to_batches())] * 2
    blend = (BLEND[0], BLEND[2])
    chooser = RowChooser(sources, blend, seed=1)
    batch = PlannedBatch(step=0, sources=np.array([0, 0, 1, 1]), rows=np.array([0, 1, 0, 1]))
    chosen = chooser.choose(batch)
    assert [row.instruction for row in chosen] == ["own", "find", "own", "sort"]
    assert [row.target[1] for row in chosen] == ["", "", "own", "sort"]


def test_queries_and_documents_are_cut_to_the_lengths_of_their_sources():
    long = " ".join(["word"] * 60)
    tables = (table((long, [long, "shared"], [])), table((long, ["shared", long], [])))
    blend = tuple(
        SourceConfig(
            source=name, in_batch_negatives=True, query_max_length=query, document_max_length=document
        )
        for name, query, document in (("short", 20, 30), ("other", None, 40))
    )
    batch = PlannedBatch(step=0, sources=np.array([0, 1]), rows=np.array([0, 0]))
    for seed in range(20):  # until both rows draw the long document, which is one
        lanes = cutter([PreparedRows(rows.to_batches()) for rows in tables], blend, lanes=1, seed=seed).cut(
            batch
        )
        queries, documents = (
            [len(ids) for ids in lanes[name][0].as_py()] for name in ("queries", "documents")
        )
        if len(documents) == 1 and documents[0] > 30:
            break
    assert (queries, documents) == ([20, CONTRACT.max_length], [40])


def test_mask_of_rows_with_and_without_in_batch_negatives():
    mask = candidate_mask(
        5, positives=[[0], [2, 4], [3]], negatives=[[1], [0], [1]], in_batch=[True, True, False]
    )
    assert mask.tolist() == [
        [True, True, True, True, True],
        [True, True, True, True, False],  # document 4 is another right answer of row 1
        [False, True, False, True, False],  # own negative and target only
    ]
