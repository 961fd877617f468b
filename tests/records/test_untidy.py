"""Untidy files of all kinds: what they mean, or the sentence that refuses them."""

# ruff: noqa: E501  # a table is easier to read with a case on a line

import bz2
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.data.sample import sample_source

PAIR = {"query": "q", "positive": "p"}


def lines(*records):
    return "".join(f"{json.dumps(record)}\n" for record in records)


def parquet(columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def row_of(query="q", positives=("p",), negatives=(), **more):
    return {"query": query, "positives": list(positives), "negatives": list(negatives)} | more


UNTIDY = {
    # name: (file, content, kind, rows, or a text of the refusal)
    "numbered negatives": (
        "a.jsonl",
        lines({"anchor": "q", "positive": "p", "negative_1": "a", "negative_2": "b", "negative_10": "c"}),
        "pairs",
        [row_of(negatives=["a", "b", "c"])],
    ),
    "scores of FlagEmbedding": (
        "a.jsonl",
        lines({"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [0.75], "neg_scores": [0.25]}),
        "pairs",
        [row_of(negatives=["n"], teacher_scores=[0.75, 0.25])],
    ),
    "a text without a score": (
        "a.jsonl",
        lines({"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [0.75], "neg_scores": [None]}),
        "pairs",
        [row_of(negatives=["n"])],
    ),
    "negatives in several columns": (
        "a.jsonl",
        lines(PAIR | {"negative": "n", "hard_negatives": ["m", "n"], "negative_1": "o"}),
        "pairs",
        [row_of(negatives=["o", "n", "m"])],
    ),
    "no negatives in the list, one in a column": (
        "a.jsonl",
        lines(PAIR | {"negatives": [], "negative": "n"}),
        "pairs",
        [row_of(negatives=["n"])],
    ),
    "question and answer": ("a.jsonl", lines({"Question": "q", "Answer": "p"}), "pairs", [row_of()]),
    "passages of DPR": (
        "a.json",
        json.dumps(
            [
                {
                    "question": "q",
                    "answers": ["short"],
                    "positive_ctxs": [{"title": "t", "text": "x"}],
                    "hard_negative_ctxs": [{"title": "", "text": "n"}],
                }
            ],
            indent=2,
        ),
        "pairs",
        [row_of(positives=["t x"], negatives=["n"])],
    ),
    "two columns that may be meant": (
        "a.jsonl",
        lines({"question": "q", "answers": ["a"], "context": "c"}),
        "pairs",
        r"'answers' and 'context' may both be the positives; choose with columns: {positives: ans",
    ),
    "columns of another kind": (
        "a.csv",
        "text,label\na,1\n",
        "pairs",
        "set kind: labels",
    ),
    "blank optional cells": (
        "a.csv",
        "query,positive,negative,cluster\nq,p,,\nr,s,n,7\n",
        "pairs",
        [row_of(cluster=None), row_of("r", ["s"], ["n"], cluster="7")],
    ),
    "lists in cells": (
        "a.csv",
        'query,positives,negatives\nq,"[""p"", ""r""]","[\'n\', \'it\'\'s\']"\n'.replace("\\'", "'"),
        "pairs",
        [row_of(positives=["p", "r"], negatives=["n", "its"])],
    ),
    "semicolons": ("a.csv", "query;positive\nq, r;p\n", "pairs", [row_of("q, r")]),
    "byte order mark and CR LF": ("a.csv", b"\xef\xbb\xbfquery,positive\r\nq,p\r\n", "pairs", [row_of()]),
    "UTF-16 of a spreadsheet": ("a.tsv", "query\tpositive\nq\tp\n".encode("utf-16"), "pairs", [row_of()]),
    "UTF-16 of a shell": ("a.jsonl", lines(PAIR).encode("utf-16"), "pairs", "a.jsonl is UTF-16; convert it"),
    "byte order mark in JSON": ("a.jsonl", b"\xef\xbb\xbf" + lines(PAIR).encode(), "pairs", [row_of()]),
    "quotes in a TSV of plain text": (
        "a.tsv",
        'query\tpositive\n"Red" light\tStop.\n6" tall\tSmall.\n"open\tp\n"say ""hi"""\tp\n',
        "pairs",
        [row_of('"Red" light', ["Stop."]), row_of('6" tall', ["Small."]), row_of('"open'), row_of('say "hi"')],
    ),
    "quotes around lines in a TSV": (
        "a.tsv",
        'query\tpositive\nq\t"one\ntwo"\n',
        "pairs",
        [row_of(positives=["one\ntwo"])],
    ),
    "two columns of one name": ("a.csv", "query,positive,query\nq,p,r\n", "pairs", "two columns 'query'"),
    "array on one line": ("a.json", json.dumps([PAIR, PAIR | {"query": "r"}]), "pairs", [row_of(), row_of("r")]),
    "cut array": ("a.json", '[{"query": "q"', "pairs", "array that is broken JSON"),
    "objects over several lines": ("a.json", json.dumps(PAIR, indent=1), "pairs", "one object a line"),
    "NaN for none": (
        "a.jsonl",
        '{"query": "q", "positive": "p", "negative": NaN, "cluster": NaN, "prompt": ""}\n',
        "pairs",
        [row_of(cluster=None, instruction=None)],
    ),
    "floats and dates as keys": (
        "a.jsonl",
        lines({"text": "a", "label": 1.0, "group": 3.0}, {"text": "b", "label": True, "group": "x"}),
        "labels",
        [{"text": "a", "label": "1", "group": "3"}, {"text": "b", "label": "True", "group": "x"}],
    ),
    "half a class": ("a.jsonl", lines({"text": "a", "label": 0.5}), "labels", "label is not a text"),
    "names next to numbers of classes": (
        "a.jsonl",
        lines({"text": "a", "label": 0, "label_text": "bad"}),
        "labels",
        [{"text": "a", "label": "bad"}],
    ),
    "many texts in one record": (
        "a.jsonl",
        lines({"sentences": ["a", "b"], "labels": ["x", "y"]}),
        "labels",
        [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
    ),
    "no consensus": (
        "a.jsonl",
        lines({"premise": "a", "hypothesis": "b", "label": "-"}, {"premise": "a", "hypothesis": "b", "label": 2.0}),
        "nli",
        [{"sentence1": "a", "sentence2": "b", "label": "contradiction"}],
    ),
    "names of duplicates": (
        "a.jsonl",
        lines({"question1": "a", "question2": "b", "label": "not_duplicate"}),
        "duplicates",
        [{"sentence1": "a", "sentence2": "b", "label": "0"}],
    ),
    "pairs of Quora": (
        "a.jsonl",
        lines({"questions": {"id": [1, 2], "text": ["a", "b"]}, "is_duplicate": True}),
        "duplicates",
        [{"sentence1": "a", "sentence2": "b", "label": "1"}],
    ),
    "lists in a struct": (
        "a.jsonl",
        lines({"query": "q", "positives": {"title": ["s", ""], "text": ["x", "y"]}}),
        "pairs",
        [row_of(positives=["s x", "y"])],
    ),
    "lone surrogate": ("a.jsonl", lines({"query": "\ud83d", "positive": "p"}), "pairs", "broken encoding"),
    "gzip": ("a.ndjson.gz", gzip.compress(lines(PAIR).encode()), "pairs", [row_of()]),
    "bzip2": ("a.csv.bz2", bz2.compress(b"query,positive\nq,p\n"), "pairs", [row_of()]),
    "xz": ("a.jsonl.xz", lzma.compress(lines(PAIR).encode()), "pairs", [row_of()]),
    "zstandard": ("a.json.zst", pa.compress(json.dumps([PAIR]).encode(), "zstd", asbytes=True), "pairs", [row_of()]),
    "an archive": ("a.zip", b"PK", "pairs", "has nothing to read as format auto"),
    "blanks in lists, with their scores": (
        "a.jsonl",
        '{"query": "q", "pos": ["p", NaN], "neg": [null, "n", {}, " "], "pos_scores": [1, 0], "neg_scores": [3, 0.5, 4, 4]}\n',
        "pairs",
        [row_of(negatives=["n"], teacher_scores=[1.0, 0.5])],
    ),
    "lists of numpy in cells": (
        "a.csv",
        "query,pos,neg,pos_scores,neg_scores\nq,\"['p' 'it''s']\",\"('n', nan)\",[0.5 -1],\"[2, nan]\"\n",
        "pairs",
        [row_of(positives=["p", "its"], negatives=["n"], teacher_scores=[0.5, -1.0, 2.0])],
    ),
    "lists as texts of a table": (
        "a.jsonl",
        lines({"query": "q", "positive": '["p"]', "negatives": '["a", "b"]'}),
        "pairs",
        [row_of(positives=['["p"]'], negatives=["a", "b"])],
    ),
    "one score a column": (
        "a.csv",
        "query,positive,negative,positive_score,negative_score\nq,p,n,0.75,0.25\n",
        "pairs",
        [row_of(negatives=["n"], teacher_scores=[0.75, 0.25])],
    ),
    "other spellings of columns": (
        "a.jsonl",
        lines({"queryText": "q", "positive_document": "p", "hard_negatives_2": "b", "hard_negatives_1": "a"}),
        "pairs",
        [row_of(negatives=["a", "b"])],
    ),
    "names that pandas gave twice": (
        "a.csv",
        "Question,response,neg.1,neg.2\nq,p,a,b\n",
        "pairs",
        [row_of(negatives=["a", "b"])],
    ),
    "the exact name goes before a spelling": (
        "a.jsonl", lines({"Query": "other", "query": "q", "positive": "p"}), "pairs", [row_of()]
    ),
    "texts stored as bytes": (
        "a.pq",
        parquet({"query": [b"q", b"\xff"], "positive": ["p", "p"]}),
        "pairs",
        "query is not a text",
    ),
    "bytes that are texts": ("a.pq", parquet({"query": [b"q"], "positive": [b"p"]}), "pairs", [row_of()]),
    "nested too deeply": ("a.jsonl", '{"query": ' + "[" * 9000 + "]" * 9000 + "}\n", "pairs", "broken JSON"),
    "a number of many digits": ("a.json", '[{"query": ' + "9" * 5000 + "}]", "pairs", "array that is broken JSON"),
    "two arrays": ("a.json", json.dumps([PAIR]) * 2, "pairs", "goes on behind its array, with .* write one array"),
    "upper-case suffix of a compressed file": ("a.JSON.GZ", gzip.compress(json.dumps([PAIR]).encode()), "pairs", [row_of()]),
    "a compressed file under a plain name": ("a.jsonl", gzip.compress(b"{}"), "pairs", "is compressed with gzip"),
    "Parquet under another name": ("a.csv", parquet({"query": ["q"]}), "pairs", "is a Parquet file; let its name"),
    "a pointer of Git LFS": ("a.parquet", "version https://git-lfs.github.com/spec/v1\n", "pairs", "git lfs pull"),
    "a web page": ("a.jsonl", "<!DOCTYPE html><html></html>", "pairs", "is a web page in place of the data"),
    "a CSV of Excel": ("a.csv", "sep=;\n\nquery;positive\nq;p;\n", "pairs", [row_of()]),
    "CSV files put together": ("a.csv", "query,positive\nq,p\nquery,positive\nr,p\n", "pairs", [row_of(), row_of("r")]),
    "backslashes before quotes": ("a.csv", 'query,positive\n"a \\"b\\" c",p\n', "pairs", 'a.csv:2 is not CSV.* inside as ""'),
    "floats as classes in CSV": (
        "a.csv", "text,label\na,0.0\nb,1.5\n", "labels", [{"text": "a", "label": "0"}, {"text": "b", "label": "1.5"}]
    ),
    "floats as texts of NLI": (
        "a.jsonl",
        lines({"sentence_1": "a", "sentence_2": "b", "label": "2.0"}, {"sentence_1": "a", "sentence_2": "b", "label": "-1.0"}),
        "nli",
        [{"sentence1": "a", "sentence2": "b", "label": "contradiction"}],
    ),
    "spellings of duplicates": (
        "a.csv",
        "text_a,text_b,label\na,b,Not Duplicate\na,c,Y\na,d,\n",
        "duplicates",
        [{"sentence2": "b", "label": "0"}, {"sentence2": "c", "label": "1"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTIDY)
def test_an_untidy_file_has_one_meaning_or_is_refused(tmp_path, name):
    file, content, kind, expected = UNTIDY[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = UserSourceConfig(path=str(tmp_path / file), kind=kind)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            raise DataError("; ".join(sample_source("mine", source, 9).bad))
        return
    found = sample_source("mine", source, 9).rows
    assert [{key: row[key] for key in want} for row, want in zip(found, expected, strict=True)] == expected


def test_labels_may_be_given_a_meaning(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines({"premise": "a", "hypothesis": "b", "label": 0}))
    source = {"path": str(tmp_path / "a.jsonl"), "kind": "nli", "label_texts": {0.0: "contradiction"}}
    (row,) = sample_source("mine", UserSourceConfig(**source), 1).rows
    assert row["label"] == "contradiction"


def test_what_is_understood_and_what_is_not_used_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines({"anchor": "q", "translation": {"de": "p", "fr": "f"}, "idx": 3}))
    (tmp_path / "b.zip").write_text("")
    source = UserSourceConfig(path=str(tmp_path), columns={"positives": "translation.de"})
    sample = sample_source("mine", source, 5)
    assert sample.columns == {"query": ["anchor"], "positives": ["translation.de"]}
    assert (sample.unused, sample.unread, sample.rows[0]["positives"]) == (["idx"], ["b.zip"], ["p"])
    assert "not used: idx" in list(sample.lines())
