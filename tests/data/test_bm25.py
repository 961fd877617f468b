from rayembed.data.bm25 import BM25Index, best_documents, identifier_parts, search_terms


def test_search_splits_identifiers_and_ranks_best_first():
    scores = next(BM25Index(["def read_file(): pass", "def write_file(): pass", "x"]).scores(["read file"]))
    assert best_documents(scores, 5, excluded=set()).tolist() == [0, 1]
    assert best_documents(scores, 5, excluded={0}).tolist() == [1]


def test_compound_identifiers_are_split_and_function_words_left_out():
    parts = ["read", "lines", "from", "http", "server", "utf8"]
    assert identifier_parts("readLines_from(HTTPServer, utf8)") == parts
    assert search_terms("for line in readLines(the_file)") == ["line", "read", "lines", "file"]
