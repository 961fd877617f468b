"""Makes rows of a layout from the records of files; what is wrong with a record says why there is none."""

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any

from rayembed.records.base import CellText, Unreadable
from rayembed.records.columns import Columns, is_missing
from rayembed.records.schema import Kind, label_row, pair_row, row_texts, score_row, sentence_label_row

LONGEST_TEXT = 100_000
"""Characters; a longer text is a book or a file read wrongly, and far above what any model reads."""

NO_LABEL = "no label"
"""Reason of rows that data sets ship without a label on purpose; they do not count as bad."""

_NLI = {
    "0": "entailment", "e": "entailment", "entail": "entailment", "entails": "entailment",
    "entailed": "entailment", "contradict": "contradiction", "contradicted": "contradiction",
    "1": "neutral", "n": "neutral", "neutral": "neutral", "entailment": "entailment",
    "2": "contradiction", "c": "contradiction", "contradicts": "contradiction",
    "contradictory": "contradiction", "contradiction": "contradiction",
}  # fmt: skip
_DUPLICATES = {
    "0": "0", "false": "0", "no": "0", "f": "0", "n": "0", "not_duplicate": "0", "not_equivalent": "0",
    "not_paraphrase": "0", "non_duplicate": "0",
    "1": "1", "true": "1", "yes": "1", "t": "1", "y": "1", "duplicate": "1", "equivalent": "1",
    "paraphrase": "1",
}  # fmt: skip
_WITHOUT_CONSENSUS = ("-", "-1", "none")


class BadRow(Exception):
    """A row that is left out: a reason such as "empty", and what is wrong with it in particular."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class RowChecker:
    """Makes rows of one source."""

    kind: Kind
    columns: Columns
    dataset: str
    task_type: str
    labels: Mapping[str, str] = field(
        default_factory=dict
    )  # of sentence pairs: label in the files -> meaning

    def row(self, record: Mapping[str, Any] | Unreadable) -> dict[str, Any]:
        """Row of the layout.

        Raises:
            BadRow: something is empty, of a wrong type or encoding, too long, or contradicts itself.
            DataError: it is not clear which column is meant.
        """
        if isinstance(record, Unreadable):
            raise BadRow(record.reason, record.detail)
        row = _ROWS[self.kind](self, record)
        longest = max(map(len, row_texts(row)))
        if longest > LONGEST_TEXT:
            raise BadRow("too long", f"{longest} characters, {LONGEST_TEXT} are allowed")
        return row

    def _text(self, record: Mapping[str, Any], column: str) -> str:
        return _text(self.columns.value(record, column), column)

    def _optional_key(self, record: Mapping[str, Any], column: str) -> str | None:
        value = self.columns.value(record, column)
        return None if value is None else _text(_key(value), column)

    def _pair(self, record: Mapping[str, Any]) -> dict[str, Any]:
        all_positives = _documents(self.columns.values(record, "positives"), "positive")
        all_negatives = _documents(self.columns.values(record, "negatives"), "negative")
        scores = self._teacher_scores(record, len(all_positives), len(all_negatives))
        if scores is not None:
            documents = [*all_positives, *all_negatives]
            scores = [score for score, text in zip(scores, documents, strict=True) if text is not None]
        positives = [text for text in all_positives if text is not None]
        negatives = [text for text in all_negatives if text is not None]
        if scores is None:  # two columns may hold the same one
            negatives = list(dict.fromkeys(negatives))
        if not positives:
            raise BadRow("no positive", "positives are missing or an empty list")
        if not set(positives).isdisjoint(negatives):
            raise BadRow("contradiction", "a negative is also a positive")
        instruction = self.columns.value(record, "instruction")
        return pair_row(
            self._text(record, "query"),
            positives,
            negatives,
            dataset=self.dataset,
            task_type=self.task_type,
            cluster=self._optional_key(record, "cluster"),
            teacher_scores=scores,
            instruction=None if instruction is None else _text(instruction, "instruction"),
        )

    def _teacher_scores(
        self, record: Mapping[str, Any], positives: int, negatives: int
    ) -> list[float] | None:
        """One score a document; FlagEmbedding has those of positives and negatives apart, or those of one."""
        whole, of_positives, of_negatives = (
            None if (value := self.columns.value(record, column)) == [] else value
            for column in ("teacher_scores", "positive_scores", "negative_scores")
        )
        if whole is not None:
            return _numbers(whole, positives + negatives, "teacher_scores", gaps=True)
        if of_positives is None and of_negatives is None:
            return None
        return [
            *_numbers(_or_gaps(of_positives, positives), positives, "pos_scores", gaps=True),
            *_numbers(_or_gaps(of_negatives, negatives), negatives, "neg_scores", gaps=True),
        ]

    def _label(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return label_row(
            self._text(record, "text"),
            _text(_key(self.columns.value(record, "label")), "label"),
            dataset=self.dataset,
            task_type=self.task_type,
            group=self._optional_key(record, "group"),
        )

    def _score(self, record: Mapping[str, Any]) -> dict[str, Any]:
        value = self.columns.value(record, "score")
        (score,) = _numbers([math.nan if isinstance(value, bool) else value], 1, "score")
        first, second = self._text(record, "sentence1"), self._text(record, "sentence2")
        return score_row(first, second, score, dataset=self.dataset, task_type=self.task_type)

    def _sentence_pair(self, record: Mapping[str, Any]) -> dict[str, Any]:
        meanings = _NLI if self.kind == "nli" else _DUPLICATES
        given = _whole(str(self.columns.value(record, "label")))
        label = _spelled(self.labels.get(given, given))
        if given.lower() in _WITHOUT_CONSENSUS:
            raise BadRow(NO_LABEL, f"label {given!r}: people did not agree")
        if label not in meanings:
            raise BadRow(
                "wrong type",
                f"label {given[:40]!r} is none of {', '.join(meanings)}; say what it means with label_texts",
            )
        first, second = self._text(record, "sentence1"), self._text(record, "sentence2")
        return sentence_label_row(
            first, second, meanings[label], dataset=self.dataset, task_type=self.task_type
        )


_ROWS: dict[Kind, Callable[[RowChecker, Mapping[str, Any]], dict[str, Any]]] = {
    "pairs": RowChecker._pair,
    "labels": RowChecker._label,
    "scores": RowChecker._score,
    "nli": RowChecker._sentence_pair,
    "duplicates": RowChecker._sentence_pair,
}


def unfolded(record: Any) -> Iterator[Any]:
    """The records that one record stands for.

    Clustering sets of mteb have many texts in one: `{"sentences": ["a", "b"], "labels": ["x", "y"]}` is two
    records. Quora's pairs are one text each in a list: `{"questions": {"text": ["a", "b"]}}` is one record
    with `question1` and `question2`.
    """
    if isinstance(record, dict):
        texts, labels = record.get("sentences"), record.get("labels")
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            for text, label in zip(texts, labels, strict=True):
                yield record | {"sentences": text, "labels": label}
            return
        questions = record.get("questions")
        if isinstance(questions, dict) and len(questions.get("text") or ()) == 2:
            first, second = questions["text"]
            record = record | {"question1": first, "question2": second}
    yield record


def _documents(values: list[Any], what: str) -> list[str | None]:
    """Documents in one column or several, each a text, a list, or an object with `text` and `title`.

    A blank item of a list is None, so that scores of the others stay with them.
    """
    documents: list[str | None] = []
    for value in values:
        if isinstance(value, CellText):
            value = _listed(value)
        if isinstance(value, dict) and isinstance(value.get("text"), list):
            value = _transposed(value)
        if not isinstance(value, str | list | dict):
            raise BadRow("wrong type", f"{what}s are neither a text nor a list")
        items = value if isinstance(value, list) else [value]
        passages = map(_passage, items)
        documents += [None if is_missing(passage) else _text(passage, what) for passage in passages]
    return documents


def _listed(cell: CellText) -> str | list[Any]:
    """The texts or objects of a list that a cell holds as JSON or as Python writes it, or the cell itself."""
    if cell.startswith(("[", "(")):
        for read in (json.loads, _python_list):
            try:
                value = read(cell)
            except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
                continue
            if isinstance(value, list | tuple) and all(isinstance(one, str | dict | None) for one in value):
                return list(value)
    return str(cell)


def _python_list(cell: str) -> Any:
    """A list of Python or numpy. The latter has no commas: `['a' 'b']`, which Python alone would join."""
    code, text_ended = "", None
    for token in tokenize.generate_tokens(io.StringIO(cell).readline):
        if token.string.strip():
            is_text = token.type == tokenize.STRING
            code += "," if is_text and text_ended and text_ended != token.start else ""
            code += "None " if token.string == "nan" else f"{token.string} "
            text_ended = token.end if is_text else None
    return ast.literal_eval(code)


def _transposed(value: dict[str, Any]) -> list[dict[str, Any]]:
    """`{"text": ["a", "b"], "title": ["s", "t"]}`, as Arrow files hold lists of objects, as such a list."""
    lists = {name: items for name, items in value.items() if isinstance(items, list)}
    return [
        {name: items[position] for name, items in lists.items() if position < len(items)}
        for position in range(len(lists["text"]))
    ]


def _passage(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    title, text = value.get("title") or "", value.get("text")
    return f"{title} {text}".strip() if isinstance(title, str) and isinstance(text, str) else value or None


def _text(value: Any, what: str) -> str:
    if is_missing(value):
        raise BadRow("empty", what)
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{what} is not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow("broken encoding", what) from None
    return str(value)


def _numbers(values: Any, count: int, what: str, *, gaps: bool = False) -> list[float]:
    """A list of `count` finite numbers; with `gaps` a text may have none, which is NaN."""
    if isinstance(values, str):  # [0.9, 0.1] of JSON, [0.9 0.1] of numpy
        bracketed = values.strip().startswith(("[", "("))
        values = values.strip()[1:-1].replace(",", " ").split() if bracketed else [values]
    values = values if isinstance(values, list) else [values]
    if len(values) != count:
        raise BadRow("wrong type", f"{what} is not a list of {count} numbers, one a document")
    try:
        numbers = [math.nan if gaps and value in (None, "null", "None") else float(value) for value in values]
    except (TypeError, ValueError):
        numbers = [math.inf]
    if not all(math.isfinite(number) or (gaps and math.isnan(number)) for number in numbers):
        raise BadRow("wrong type", f"{what} has something that is not a number")
    return numbers


def _or_gaps(scores: Any, count: int) -> Any:
    return [None] * count if scores is None else scores


def _key(value: Any) -> Any:
    """Classes and groups may be numbers or dates; pandas writes the class 1 as 1.0 next to missing ones."""
    if isinstance(value, CellText | Decimal) or (isinstance(value, float) and value.is_integer()):
        return _whole(str(value))
    return str(value) if isinstance(value, int | date) else value


def class_name(value: Any) -> Any:
    """A class as text, as rows of training have it; what can be none stays as it is."""
    key = _key(value)
    return key.strip() if isinstance(key, str) else key


def is_duplicate(label: Any) -> bool | None:
    """Whether a label says that two texts mean the same; None where it says neither."""
    meaning = _DUPLICATES.get(_spelled(_whole(str(label))))
    return None if meaning is None else meaning == "1"


def _spelled(label: str) -> str:
    return re.sub(r"[\s-]+(?=.)", "_", label.strip().lower())


def _whole(number: str) -> str:
    return re.sub(r"^(-?\d+)\.0+$", r"\1", number.strip())
