import pyarrow as pa

from rayembed.mining.collection import collect
from rayembed.records.schema import pair_row, to_table


def row(query, positives, negatives=(), cluster=None, instruction=None):
    return pair_row(
        query, positives, negatives,
        dataset="d", task_type="retrieval", cluster=cluster, instruction=instruction,
    )  # fmt: skip


def table(*rows):
    return to_table(rows, "pairs")


def excluded(collection):
    queries, documents = collection.queries.to_pylist(), collection.documents.to_pylist()
    pairs = zip(*collection.excluded.pairs(), strict=True)
    return {(queries[query], documents[document]) for query, document in pairs}


def test_texts_are_distinct_and_in_order_of_appearance():
    collection = collect(
        table(row("a", ["x", "y"], ["n"]), row("b", ["y"], ["x", "m"]), row("a", ["z"])),
        pa.array(["extra", "z"]),
    )
    assert collection.queries.to_pylist() == ["a", "b"]
    assert collection.query_of_row.tolist() == [0, 1, 0]
    assert collection.documents.to_pylist() == ["x", "y", "z", "n", "m", "extra"]
    assert [side.tolist() for side in collection.positives] == [[0, 0, 0, 1], [0, 1, 2, 1]]
    assert [side.tolist() for side in collection.given] == [[0, 1, 1], [3, 0, 4]]


def test_texts_may_take_more_than_two_gibibytes():
    collection = collect(table(row("a", ["x"], ["n"]), row("b", ["y"])), pa.array(["extra"]))
    for texts in (collection.queries, collection.instructions, collection.documents, collection.document_ids):
        assert texts.type == pa.large_string()  # a pa.string() ends at 2 GiB with "offset overflow"


def test_positives_of_all_rows_of_a_query_are_excluded_and_so_is_the_query_itself():
    collection = collect(table(row("a", ["x"]), row("a", ["y"]), row("b", ["a"])))
    assert excluded(collection) == {("a", "x"), ("a", "y"), ("b", "a"), ("a", "a")}


def test_a_text_with_two_instructions_is_two_queries_that_exclude_the_positives_of_both():
    collection = collect(
        table(
            row("a", ["x"]),
            row("a", ["y"], instruction="find"),
            row("b", ["z"], instruction="find"),
            row("a", ["w"], instruction=""),
        )
    )
    assert collection.queries.to_pylist() == ["a", "a", "b"]
    assert collection.instructions.to_pylist() == ["", "find", "find"]
    assert collection.query_of_row.tolist() == [0, 1, 2, 0]
    names = collection.documents.to_pylist()
    positives = [(query, names[document]) for query, document in zip(*collection.positives, strict=True)]
    assert sorted(positives) == [(0, "w"), (0, "x"), (1, "y"), (2, "z")]
    pairs = zip(*collection.excluded.pairs(), strict=True)
    of_a = {(0, "x"), (0, "y"), (0, "w"), (1, "x"), (1, "y"), (1, "w")}
    assert {(query, names[document]) for query, document in pairs} == of_a | {(2, "z")}


def test_documents_of_the_same_cluster_are_excluded():
    collection = collect(
        table(
            row("a", ["x"], cluster="1"),
            row("b", ["y"], cluster="1"),
            row("c", ["z"], cluster="2"),
            row("d", ["w"]),
            row("e", ["v"]),
        )
    )
    own = {("a", "x"), ("b", "y"), ("c", "z"), ("d", "w"), ("e", "v")}
    assert excluded(collection) == own | {("a", "y"), ("b", "x")}


def test_a_slice_of_a_table_is_read_as_the_rows_it_shows():
    whole = table(row("a", ["x"], ["n"]), row("b", ["y", "u"], ["m"]), row("c", ["z"]))
    cut, alone = collect(whole.slice(1)), collect(table(*whole.slice(1).to_pylist()))
    assert cut.documents.to_pylist() == alone.documents.to_pylist() == ["y", "u", "z", "m"]
    assert cut.document_ids == alone.document_ids
    assert excluded(cut) == excluded(alone)
