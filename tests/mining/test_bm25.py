from rayembed.mining.bm25 import BM25Search, best_documents


def test_search_splits_identifiers_and_ranks_best_first():
    scores = next(BM25Search(["def read_file(): pass", "def write_file(): pass", "x"]).scores(["read file"]))
    assert best_documents(scores, 5, excluded=set()).tolist() == [0, 1]
    assert best_documents(scores, 5, excluded={0}).tolist() == [1]
