"""The contract with the real tokenizer of Mistral: the published rule for tokens and for the pool mask."""

import pytest

from rayembed.contract import Contract
from rayembed.contract.contract import edge_ids
from rayembed.contract.tokenizer import load_tokenizer
from tests.mistral_tokenizer import mistral_tokenizer, sentencepiece_file

MODEL_FILE = sentencepiece_file()
pytestmark = pytest.mark.skipif(MODEL_FILE is None, reason="mistral-common is not installed (extra `dev`)")

INSTRUCTION = "Given a question, retrieve passages that answer the question"
PREFIX = f"Instruct: {INSTRUCTION}\nQuery: "


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return mistral_tokenizer(tmp_path_factory.mktemp("mistral"))


def pooled_pieces(tokenizer, text, instruction=INSTRUCTION):
    tokenized = Contract().tokenize(tokenizer, [text], instruction)
    [ids], [start] = tokenized.input_ids, tokenized.pool_starts
    return start, tokenizer.convert_ids_to_tokens(ids[start:])


@pytest.mark.parametrize(
    "text", ["some words", "hello   there", " three", "a\n\nb\t", "日本 ü", "2.72", "\u0007", ""]
)
def test_the_rebuilt_tokenizer_is_sentencepiece(tokenizer, text):
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(MODEL_FILE))
    assert tokenizer(text)["input_ids"] == [1, *pieces.encode(text)]


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
@pytest.mark.parametrize("text", ["word", "2 things", " word", '"quoted"', "wörter"])
def test_end_token_as_text_equals_end_token_as_id(tokenizer, text, instruction):
    """NV-Embed appends the end token as literal text and lets the tokenizer add the beginning token."""
    contract = Contract()
    published = tokenizer(contract.prefix(instruction) + text + tokenizer.eos_token)["input_ids"]
    assert contract.tokenize(tokenizer, [text], instruction).input_ids == [published]


def test_pool_mask_counts_the_instruction_tokenised_alone(tokenizer):
    """18 tokens for the question-answering instruction, the last of them a lone space."""
    alone = tokenizer(PREFIX, add_special_tokens=False)["input_ids"]
    assert len(alone) == 18
    assert tokenizer.convert_ids_to_tokens(alone[-1:]) == ["▁"]
    assert pooled_pieces(tokenizer, "word")[0] == 18


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("word", ["▁word", "</s>"]),
        ('"word', ['▁"', "word", "</s>"]),
        ("2 words", ["▁", "2", "▁words", "</s>"]),
        (" word", ["▁", "▁word", "</s>"]),
    ],
)
def test_digit_and_leading_space_leave_one_space_piece_in_the_pool(tokenizer, text, pieces):
    assert pooled_pieces(tokenizer, text) == (18, pieces)


def test_documents_pool_everything(tokenizer):
    assert pooled_pieces(tokenizer, "word", None) == (0, ["<s>", "▁word", "</s>"])


def test_the_rule_survives_a_saved_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert pooled_pieces(load_tokenizer(tmp_path), " 2 words") == pooled_pieces(tokenizer, " 2 words")


@pytest.mark.parametrize(
    "text",
    [
        "word " * 4000,
        "a" * 9000,
        "x9Y+" * 4000,
        "中文" * 4000,
        "  \n" * 4000,
        "one " + " " * 3000 + "two " * 200,
    ],
    ids=["words", "one letter", "no blank", "Chinese", "blanks", "gap"],
)
def test_a_long_text_gives_the_same_first_and_last_tokens_read_in_part(tokenizer, text):
    [whole] = tokenizer([text], add_special_tokens=False)["input_ids"]
    assert edge_ids(tokenizer, [text], 64)[0][:64] == whole[:64]
    assert edge_ids(tokenizer, [text], 64, from_end=True)[0][-64:] == whole[-64:]
    short, long = Contract(max_length=64).tokenize(tokenizer, ["short", text]).truncated
    assert (short, long) == (False, True)


def test_a_megabyte_is_not_read_to_its_end():
    read = []

    class Counting:
        bos_token_id, cls_token_id, eos_token_id = None, None, 1

        def __call__(self, texts, **_):
            read.append(sum(map(len, texts)))
            return {"input_ids": [[7] * (len(text) // 40) for text in texts]}

    Contract(max_length=64).tokenize(Counting(), ["x" * 2**20])
    assert read == [640, 1280, 2560, 5120]
