import copy

import pytest

from rayembed.common.errors import RequestError
from rayembed.contract import Contract
from rayembed.contract.instructions import chosen_instruction, requested_instruction, trained_instructions

MODEL = Contract(instructions={"questions": "Find it", "topics": "", "twins": "Match"}, symmetric=["twins"])
PLAIN = Contract()


@pytest.mark.parametrize(
    ("words", "task", "side", "expected"),
    [
        ("Sort", None, "query", "Sort"),
        ("", None, "query", None),
        (None, None, "query", None),
        (None, "questions", "query", "Find it"),
        (None, "questions", "document", None),
        (None, "topics", "query", None),
        (None, "twins", "document", "Match"),
    ],
)
def test_words_or_a_task(words, task, side, expected):
    assert chosen_instruction(MODEL, words, task, side) == expected


def test_words_and_a_task_or_an_unknown_task_are_refused():
    with pytest.raises(RequestError, match="both given; leave out one"):
        chosen_instruction(MODEL, "Sort", "questions")
    with pytest.raises(RequestError, match="no instruction named 'nope', it was trained with: questions, t"):
        chosen_instruction(MODEL, None, "nope")


def test_the_first_known_name_counts():
    assert trained_instructions(MODEL, ("nope", "twins", "questions")) == ("Match", "Match")
    assert trained_instructions(MODEL, ("questions",)) == ("Find it", None)
    assert trained_instructions(MODEL, ("nope",)) is None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, None),
        ({"instruction": "Sort", "prompt_name": "questions", "input_type": "query"}, "Sort"),
        ({"instruction": "", "input_type": "query"}, None),
        ({"prompt_name": "questions", "input_type": "passage"}, "Find it"),
        ({"prompt_name": "topics"}, None),
        ({"input_type": "passage"}, None),
        ({"input_type": "document"}, None),
        ({"input_type": "questions"}, "Find it"),
        ({"input_type": "other"}, None),
    ],
)
def test_a_request_names_words_a_stored_instruction_or_the_kind_of_input(asked, expected):
    assert requested_instruction(MODEL, **asked) == expected
    assert requested_instruction(Contract(instructions={"query": "Find"}), input_type="query") == "Find"
    assert requested_instruction(PLAIN, input_type="query") is None


@pytest.mark.parametrize(
    ("asked", "parameter"),
    [({"prompt_name": "secret"}, "prompt_name"), ({"input_type": "query"}, "input_type")],
)
def test_a_refusal_names_the_field_and_repeats_nothing(asked, parameter):
    with pytest.raises(RequestError, match="questions, topics, twins") as refusal:
        requested_instruction(MODEL, **asked)
    assert copy.copy(refusal.value).parameter == parameter
    assert "secret" not in str(refusal.value)
