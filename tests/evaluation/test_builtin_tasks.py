import math

import numpy as np
import pytest
import pytrec_eval

from rayembed.evaluation.builtin_tasks import load_task
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from rayembed.evaluation.local_tasks import LocalClassification
from rayembed.evaluation.worker import BM25Baseline
from rayembed.records.schema import PAIR_SCHEMA
from tests.evaluation.conftest import WordEngine, pair, write_split


class RankedEngine(WordEngine):
    """Vectors on a half circle: a text `N ...` lies at N degrees, so ranks are known by construction."""

    dimensions = 2

    def _vector(self, text):
        angle = math.radians(float(text.split()[0]))
        return np.array([math.cos(angle), math.sin(angle)])


def test_ndcg_equals_the_hand_computed_value(tmp_path):
    # Query "0" finds its documents at ranks 1 and 3, query "90" finds its only one at rank 2.
    rows = [pair("0 a", "1 first"), pair("0 a", "40 third"), pair("90 b", "70 second")]
    rows += [pair("2 unused", "20 between"), pair("3 unused", "89 nearest")]
    write_split(tmp_path, "python-docstrings", "test", rows, PAIR_SCHEMA)
    task = load_task("DocstringRetrieval", tmp_path)
    split = task.dataset["default"]["test"]
    kept = [row for row in split["queries"] if "unused" not in row["text"]]
    split["queries"] = split["queries"].filter(lambda row: "unused" not in row["text"])
    split["relevant_docs"] = {row["id"]: split["relevant_docs"][row["id"]] for row in kept}

    score = evaluate_task(EngineEncoder(RankedEngine(), "ranked"), task).get_score()

    first = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    second = 1 / math.log2(3)
    assert score == pytest.approx((first + second) / 2, abs=1e-5)


def test_queries_of_equal_text_share_their_positives(tmp_path):
    rows = [pair("bank", "side of a river"), pair("bank", "house of money"), pair("oak", "tree")]
    write_split(tmp_path, "wordnet-glosses", "test", rows, PAIR_SCHEMA)
    split = load_task("WordNetGlossRetrieval", tmp_path).dataset["default"]["test"]
    assert sorted(split["queries"]["text"]) == ["bank", "oak"]
    assert sorted(len(relevant) for relevant in split["relevant_docs"].values()) == [1, 2]


def test_caps_choose_the_same_rows_whatever_their_order(tmp_path):
    rows = [pair(f"word {n}", f"gloss {n}") for n in range(4000)]
    for folder, ordered in (("a", rows), ("b", rows[::-1])):
        write_split(tmp_path / folder, "wordnet-glosses", "test", ordered, PAIR_SCHEMA)
    one, other = (load_task("WordNetGlossRetrieval", tmp_path / folder) for folder in "ab")
    split, same = one.dataset["default"]["test"], other.dataset["default"]["test"]
    assert (len(split["queries"]), len(split["corpus"])) == (500, 3000)
    assert split["queries"]["text"] == same["queries"]["text"]
    assert split["corpus"]["id"] == same["corpus"]["id"]
    judged = {document for relevant in split["relevant_docs"].values() for document in relevant}
    assert judged <= set(split["corpus"]["id"])


def test_the_revision_follows_the_rows(tmp_path):
    revisions = set()
    for text in ("def a(): 1", "def a(): 2"):
        write_split(tmp_path, "python-docstrings", "test", [pair("find a", text)], PAIR_SCHEMA)
        revisions.add(load_task("DocstringRetrieval", tmp_path).metadata.revision)
    assert len(revisions) == 2


def test_the_revision_follows_the_settings(data_dir, monkeypatch):
    before = load_task("VaderTweets", data_dir).metadata.revision
    assert load_task("VaderTweets", data_dir).metadata.revision == before
    monkeypatch.setattr(LocalClassification, "samples_per_label", 8)
    assert load_task("VaderTweets", data_dir).metadata.revision != before


def test_a_good_encoder_separates_the_toy_labels(data_dir):
    encoder = EngineEncoder(WordEngine(), "fake")
    assert evaluate_task(encoder, load_task("VaderTweets", data_dir)).get_score() > 0.9


def test_bm25_is_scored_on_the_same_task(data_dir):
    result = evaluate_task(BM25Baseline(), load_task("DocstringRetrieval", data_dir))
    assert result.get_score() > 0.9


@pytest.mark.parametrize(
    ("name", "measure"), [("DocstringRetrieval", "ndcg_cut_10"), ("DocstringReranking", "map_cut_1000")]
)
def test_scores_equal_what_pytrec_eval_says_of_the_vectors(data_dir, name, measure):
    task, engine = load_task(name, data_dir), WordEngine("7" * 64)
    split = task.dataset["default"]["test"]
    queries = engine.encode(split["queries"]["text"]).vectors
    documents = engine.encode(split["corpus"]["text"]).vectors
    allowed = split["top_ranked"] or {query: split["corpus"]["id"] for query in split["queries"]["id"]}
    found = {
        query: {
            document: float(score)
            for document, score in zip(split["corpus"]["id"], documents @ vector, strict=True)
            if document in set(allowed[query])
        }
        for query, vector in zip(split["queries"]["id"], queries, strict=True)
    }
    per_query = pytrec_eval.RelevanceEvaluator(split["relevant_docs"], {measure}).evaluate(found)
    expected = np.mean([scores[measure] for scores in per_query.values()])

    result = evaluate_task(EngineEncoder(engine, "fake"), load_task(name, data_dir))
    assert 0 < expected < 1
    assert result.get_score() == pytest.approx(expected, abs=1e-5)
    kept = result.scores["test"][0]["rayembed"]["samples"]
    assert kept == {query: pytest.approx(scores[measure], abs=1e-5) for query, scores in per_query.items()}


def test_bitext_rows_occur_once_on_each_side(tmp_path):
    rows = [
        pair("apple", "Apfel"),
        pair("the apple", "Apfel"),
        pair("apple", "Apfelbaum"),
        pair("dog", "Hund"),
    ]
    write_split(tmp_path, "debian-bitext-de", "test", rows, PAIR_SCHEMA)
    task = load_task("DebianGermanBitext", tmp_path)
    found = dict(zip(task.dataset["test"]["sentence1"], task.dataset["test"]["sentence2"], strict=True))
    assert found == {"apple": "Apfel", "dog": "Hund"}
    assert task.metadata.eval_langs == ["eng-Latn", "deu-Latn"]
    assert 0 <= evaluate_task(EngineEncoder(WordEngine(), "fake"), task).get_score() <= 1
