from types import SimpleNamespace

import datasets
import pyarrow as pa
import pytest

from rayembed.common.errors import DataError
from rayembed.config.data import DataConfig
from rayembed.data import contamination
from rayembed.data.contamination import ContaminationGuard, NearDuplicates, evaluation_texts
from rayembed.records.schema import label_row, pair_row, to_table

KNOWN = "The quick brown fox jumps over the lazy dog and then runs away into the deep dark wood"


@pytest.fixture
def guard():
    guard = ContaminationGuard()
    guard.add("animals", [KNOWN, "one word", "Wie heißt der Fuchs im Wald?"])
    return guard


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (KNOWN, True),
        ("the QUICK, brown fox jumps over the lazy dog, and then runs away into the deep dark wood!", True),
        (KNOWN + " again", True),
        (KNOWN.replace("fox", "cat"), False),
        ("The quick brown fox jumps over the lazy dog", False),
        (" ".join(reversed(KNOWN.split())), False),
        ("wie heisst der fuchs im wald", False),
        ("wie heißt der fuchs im wald", True),
        ("One word!", True),
        ("word", False),
        ("", False),
    ],
)
def test_near_duplicates_are_found_and_others_are_not(guard, text, found):
    assert (guard.match(text) is not None) == found


def test_rows_are_dropped_and_counted(guard):
    pairs = [
        pair_row("where does the quick fox live now", [KNOWN], [], dataset="d", task_type="retrieval"),
        pair_row(KNOWN, ["a text about foxes"], [], dataset="d", task_type="retrieval"),
    ]
    kept, report = guard.clean(to_table(pairs, "pairs"))
    assert kept["query"].to_pylist() == ["where does the quick fox live now"]
    assert (report.rows, dict(report.dropped)) == (2, {"animals": 1})
    assert str(report) == "1 of 2 rows resemble evaluation texts and are dropped (1 like animals)"
    kept, report = guard.clean(to_table(pairs, "pairs"), documents=True)
    assert (kept.num_rows, report.examples[0]) == (0, ("animals", KNOWN, KNOWN))
    labels = [
        label_row(text, "x", dataset="d", task_type="classification") for text in (KNOWN, "other text here")
    ]
    assert guard.clean(to_table(labels, "labels"))[0]["text"].to_pylist() == ["other text here"]


def test_a_run_is_compared_with_its_built_in_sources_unless_it_says_otherwise(monkeypatch):
    blend = ["mine", "vader-tweets", "wordnet-glosses"]
    assert contamination.compared_sources(DataConfig(), blend) == ("vader-tweets", "wordnet-glosses")
    chosen = DataConfig(contamination={"against": ["vader-amazon"]})
    assert contamination.compared_sources(chosen, blend) == ("vader-amazon",)
    assert contamination.compared_sources(DataConfig(contamination={"against": []}), blend) == ()


def test_guard_reads_test_splits_and_declared_sources(home):
    (home / "held_out.csv").write_text(f"text,label\n{KNOWN},animals\n")
    data = DataConfig(sources={"held-out": {"path": "held_out.csv", "kind": "labels"}})
    guard = contamination.make_guard(data, ["held-out"])
    assert guard.match(KNOWN) == ("held-out", KNOWN)


class FakeTask:
    def __init__(self, name, rows):
        metadata = {"name": name, "dataset": {"path": "a/b", "revision": "7"}, "eval_splits": ["test"]}
        self.metadata, self.rows, self.dataset = SimpleNamespace(**metadata), rows, None

    def load_data(self):
        self.dataset = {"default": {"test": self.rows, "train": None}}


def test_tasks_and_benchmarks_of_mteb_are_compared(monkeypatch):
    search = {
        "queries": {"text": [KNOWN]}, "corpus": {"text": ["A document."]}, "relevant_docs": {}
    }  # fmt: skip
    pairs = datasets.Dataset.from_dict({"sentence1": ["Sofa"], "sentence2": ["A couch."], "labels": ["x"]})
    tasks = [FakeTask("Search", search), FakeTask("Pairs", pairs)]
    monkeypatch.setattr("mteb.get_benchmark", {"Everything": SimpleNamespace(tasks=tasks)}.__getitem__)
    monkeypatch.setattr("mteb.get_task", {"Pairs": tasks[1]}.__getitem__)
    guard = contamination.make_guard(DataConfig(), ["mteb:Everything"])
    assert [guard.match(text) for text in ("sofa!", "a document")] == [("Pairs", "Sofa"), None]
    assert guard.match(KNOWN + " again") == ("Search", KNOWN)
    assert contamination.compared_files(DataConfig(), ["mteb:Pairs"]) == {"Pairs": "7"}
    documents = DataConfig(contamination={"documents": True})
    assert contamination.make_guard(documents, ["mteb:Everything"]).match("A document")
    with pytest.raises(DataError, match="mteb has no benchmark or task 'Nothing'"):
        contamination.make_guard(DataConfig(), ["mteb:Nothing"])


def test_a_guard_that_compares_nothing_says_so(caplog):
    assert contamination.compared_sources(DataConfig(), ["mine"]) == ()
    assert "nothing is compared" in caplog.text
    derived = DataConfig(sources={"mined": {"path": "a", "derived_from": "vader-tweets"}})
    assert contamination.compared_sources(derived, ["mined"]) == ("vader-tweets",)


def test_texts_of_an_evaluation():
    pairs = pa.Table.from_pylist([pair_row("q", ["p"], ["n"], dataset="d", task_type="t")])
    assert evaluation_texts(pairs, documents=False) == ["q"]
    assert evaluation_texts(pairs, documents=True) == ["q", "p"]


TEXT = "the quick brown fox jumps over the lazy dog while the cat sleeps on the warm roof of the old house"


def test_the_most_similar_text_is_named():
    seen = NearDuplicates(similarity=0.3)
    seen.add("far", TEXT.replace("lazy", "tired").replace("warm", "cold"))
    seen.add("near", TEXT.replace("house", "barn"))
    assert seen.find(TEXT) == "near"
    assert seen.find("a completely different text about the growth of apple trees") is None


def test_search_finds_what_comparing_all_pairs_finds():
    words = [f"word{number}" for number in range(30)]
    texts = [" ".join(words[start : start + 20]) for start in range(8)]
    seen = NearDuplicates(similarity=0.8)
    seen.add(0, texts[0])
    # 18 triples each; shifted by s words, 18 - s of them are shared.
    expected = [(18 - shift) / (18 + shift) >= 0.8 for shift in range(8)]
    assert [seen.find(text) is not None for text in texts] == expected


def test_two_words_are_no_text():
    seen = NearDuplicates()
    seen.add("short", "two words")
    assert len(seen) == 0
    assert seen.find("two words") is None


def test_characters_of_chinese_are_words():
    seen = NearDuplicates()
    seen.add("walk", "今天天气很好我们去公园散步吧然后回家吃饭看电视")
    assert seen.find("今天天气很好我们去公园散步吧然后回家吃饭看电视。") == "walk"
    assert seen.find("明天天气不好我们在家里看书") is None
