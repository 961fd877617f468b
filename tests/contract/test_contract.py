import pytest
from pydantic import ValidationError

from rayembed.common.errors import CheckpointError, RequestError
from rayembed.contract import Contract
from rayembed.contract.tokenizer import load_tokenizer
from tests.tiny import make_tokenizer

INSTRUCTION = "find it"
PREFIX = f"Instruct: {INSTRUCTION}\nQuery: "


def decode(tokenizer, ids):
    return tokenizer.decode(ids)


def test_documents_have_no_prefix_and_end_with_the_end_token():
    tokenizer = make_tokenizer()
    tokenized = Contract().tokenize(tokenizer, ["abc"])
    assert decode(tokenizer, tokenized.input_ids[0]) == "abc<end>"
    assert tokenized.pool_starts == [0]
    assert tokenized.truncated == [False]


def test_instruction_tokens_come_first_and_are_not_pooled():
    tokenizer = make_tokenizer()
    tokenized = Contract().tokenize(tokenizer, ["abc"], INSTRUCTION)
    [ids], [start] = tokenized.input_ids, tokenized.pool_starts
    assert decode(tokenizer, ids) == PREFIX + "abc<end>"
    # One token a byte: the space behind the colon stays a token of its own and is pooled, as the published
    # rule leaves a lone space piece in front of a digit.
    assert decode(tokenizer, ids[start:]) == " abc<end>"


def test_published_count_rule_with_a_beginning_token():
    tokenizer = make_tokenizer(with_beginning=True)
    [ids], [start] = (
        (tokenized := Contract().tokenize(tokenizer, ["abc"], INSTRUCTION)).input_ids,
        tokenized.pool_starts,
    )
    # n positions for n tokens of the prefix alone; the beginning token shifts them by one.
    assert start == len(PREFIX)
    assert decode(tokenizer, ids[:1]) == "<begin>"
    assert decode(tokenizer, ids[start:]) == " abc<end>"


def test_truncation_keeps_the_end_token_and_is_reported():
    tokenizer = make_tokenizer()
    tokenized = Contract(max_length=6).tokenize(tokenizer, ["abcdefgh", "ab"])
    assert [decode(tokenizer, ids) for ids in tokenized.input_ids] == ["abcde<end>", "ab<end>"]
    assert tokenized.truncated == [True, False]


def test_published_truncation_cuts_the_end_token_away():
    tokenizer = make_tokenizer()
    tokenized = Contract(max_length=6, truncation="published").tokenize(tokenizer, ["abcdefgh"])
    assert decode(tokenizer, tokenized.input_ids[0]) == "abcdef"
    assert tokenized.truncated == [True]


@pytest.mark.parametrize("with_beginning", [False, True])
@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
def test_token_arrays_equal_texts(with_beginning, instruction):
    tokenizer = make_tokenizer(with_beginning=with_beginning)
    contract = Contract()
    bare = tokenizer(" word", add_special_tokens=False)["input_ids"]
    by_text = contract.tokenize(tokenizer, ["word" if instruction else " word"], instruction)
    by_ids = contract.tokenize_ids(tokenizer, [bare], instruction)
    assert by_ids == by_text


@pytest.mark.parametrize("split_special_tokens", [False, True])
def test_ids_are_those_of_the_tokenizer_whatever_its_last_call_set(split_special_tokens):
    tokenizer = make_tokenizer(with_beginning=True)
    tokenizer.split_special_tokens = split_special_tokens
    texts = ["plain", "é 🙂", "a<end>b", " <begin> x"]
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert (expected[2] == [*tokenizer("a")["input_ids"][1:], 0, *tokenizer("b")["input_ids"][1:]]) != (
        split_special_tokens
    )
    tokenizer(["x", "longer"], truncation=True, max_length=3, padding=True)
    contract = Contract(max_length=64, append_eos=False)
    assert contract.tokenize(tokenizer, texts).input_ids == [[1, *ids] for ids in expected]


def test_instruction_longer_than_the_limit_is_refused():
    with pytest.raises(RequestError, match="leaves no room"):
        Contract(max_length=8).tokenize(make_tokenizer(), ["abc"], INSTRUCTION)


def test_round_trip_and_damage(tmp_path):
    contract = Contract(max_length=77, instructions={"query": "find"})
    contract.save(tmp_path)
    assert Contract.load(tmp_path) == contract
    (tmp_path / "contract.json").write_text('{"max_length": 77, "pooling_of_the_future": 1}')
    with pytest.raises(CheckpointError, match="not a readable contract"):
        Contract.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"no contract\.json"):
        Contract.load(tmp_path / "elsewhere")


def test_another_version_is_refused(tmp_path):
    (tmp_path / "contract.json").write_text('{"version": 2}')
    with pytest.raises(CheckpointError, match="contract version 2, this release reads 1"):
        Contract.load(tmp_path)
    (tmp_path / "contract.json").write_text('{"version": 1')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Contract.load(tmp_path)


def test_instructions_of_trained_tasks_by_side():
    contract = Contract(
        instructions={"search": "find", "similar": "match", "plain": ""}, symmetric=("similar",)
    )
    assert [contract.instruction_for(task) for task in ("search", "similar", "plain")] == [
        "find",
        "match",
        None,
    ]
    assert contract.instruction_for("search", side="document") is None
    assert contract.instruction_for("similar", side="document") == "match"
    with pytest.raises(RequestError, match=r"no instruction named 'sort'.*plain, search, similar"):
        contract.instruction_for("sort")


def test_text_without_tokens_to_pool_is_refused():
    with pytest.raises(RequestError, match="no tokens to pool"):
        Contract(append_eos=False).tokenize(make_tokenizer(), [""])


@pytest.mark.parametrize(
    "template",
    [
        "Find: ",
        "{task}: {query}",
        '{"task": {instruction}} ',
        "{instruction} {instruction}",
        "{instruction",
        "{instruction!r}: ",
        "{instruction:>9} ",
    ],
)
def test_a_template_without_one_place_for_the_instruction_is_refused(template):
    with pytest.raises(ValidationError, match=r"instruction_template .* needs \{instruction\} once"):
        Contract(instruction_template=template)


def test_doubled_braces_in_a_template_are_braces():
    assert Contract(instruction_template="{{{instruction}}} ").prefix("Find") == "{Find} "


def test_a_token_that_the_model_does_not_embed_is_named(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|passage|>", "<|more|>"])
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mistral", "vocab_size": 258}')
    with pytest.raises(CheckpointError, match=r"has 260 tokens and the model embeds 258, so '<\|passage\|>'"):
        load_tokenizer(tmp_path)
