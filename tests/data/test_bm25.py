import bm25s
import numpy as np

from rayembed.data.bm25 import K1, B, BM25Index, best_documents, identifier_parts, search_terms


def test_search_splits_identifiers_and_ranks_best_first():
    scores = next(BM25Index(["def read_file(): pass", "def write_file(): pass", "x"]).scores(["read file"]))
    assert best_documents(scores, 5, excluded=np.array([])).tolist() == [0, 1]
    assert best_documents(scores, 5, excluded=np.array([0])).tolist() == [1]


def test_processes_share_an_index_on_disk(tmp_path):
    texts = ["def read_file(): pass", "", "write the file file", "x"]
    BM25Index(text for text in texts).save(tmp_path)
    opened, asked = BM25Index.open(tmp_path), ["read file", "file file", "nothing", ""]
    assert isinstance(opened._index.scores["data"], np.memmap)
    peer = bm25s.BM25(k1=K1, b=B)
    peer.index([search_terms(text) for text in texts], show_progress=False)
    expected = [peer.get_scores(terms) if (terms := search_terms(query)) else np.zeros(4) for query in asked]
    np.testing.assert_array_equal(list(opened.scores(asked)), expected)
    assert expected[1][2] > 0


def test_compound_identifiers_are_split_and_function_words_left_out():
    parts = ["read", "lines", "from", "http", "server", "utf8"]
    assert identifier_parts("readLines_from(HTTPServer, utf8)") == parts
    assert search_terms("for line in readLines(the_file)") == ["line", "read", "lines", "file"]
