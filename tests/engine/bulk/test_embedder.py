import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rayembed import Embedder
from rayembed.common.errors import RequestError

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ["a", "some longer text here", "b c", "some longer text here", "1 2 3"]


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint) -> Embedder:
    return Embedder.load(tiny_checkpoint, precision="fp32")


def test_vectors_are_those_of_the_engine_in_the_order_of_the_texts(embedder):
    vectors = embedder.encode(TEXTS, instruction="Find it", dimensions=8)
    assert vectors.shape == (5, 8)
    assert vectors.dtype == np.float32
    expected = embedder.engine.encode(TEXTS, instruction="Find it", dimensions=8).vectors
    np.testing.assert_array_equal(vectors, expected)
    np.testing.assert_array_equal(vectors[1], vectors[3])


def test_any_iterable_will_do(embedder):
    expected = embedder.encode(TEXTS)
    np.testing.assert_array_equal(embedder.encode(text for text in TEXTS), expected)
    np.testing.assert_array_equal(embedder.encode(np.array(TEXTS)), expected)
    assert embedder.encode([]).shape == (0, embedder.dimensions)


@pytest.mark.parametrize(
    ("side", "instruction"), [("query", "Find the answer"), ("document", None)], ids=lambda value: str(value)
)
def test_a_task_stands_for_the_instruction_it_was_trained_with(embedder, side, instruction):
    np.testing.assert_array_equal(
        embedder.encode(TEXTS, task="questions", side=side), embedder.encode(TEXTS, instruction=instruction)
    )


def test_blocks_come_in_order_and_read_only_what_they_need(embedder):
    read = []
    blocks = embedder.encode_blocks(
        (read.append(text) or text for text in TEXTS), block_size=2, show_progress=False
    )
    assert read == []
    first = next(blocks)
    assert read == TEXTS[:2]
    rest = list(blocks)
    assert [len(block) for block in (first, *rest)] == [2, 2, 1]
    np.testing.assert_allclose(np.concatenate([first, *rest]), embedder.encode(TEXTS), atol=1e-5)


def test_progress_knows_the_total_of_a_list(embedder, capsys):
    list(embedder.encode_blocks(TEXTS, block_size=2))
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"texts": "one text"}, r"not one str; put a single text into a list"),
        ({"texts": 3}, "not int"),
        ({"texts": ["a", None]}, "text 1 is of type NoneType"),
        ({"texts": ["a"], "task": "answers"}, "was trained with: query, questions"),
        ({"texts": ["a"], "task": "questions", "instruction": "Find"}, "both given"),
        ({"texts": ["a"], "dimensions": 33}, "between 1 and 32"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "encode_blocks"])
def test_bad_requests_say_what_to_do(embedder, method, request_, message):
    with pytest.raises(RequestError, match=message):
        list(getattr(embedder, method)(**request_))


def test_blocks_refuse_a_bad_request_before_the_first_text(embedder):
    with pytest.raises(RequestError, match="block_size must be at least 1, not 0"):
        embedder.encode_blocks(TEXTS, block_size=0)
    with pytest.raises(RequestError, match="not one str"):
        embedder.encode_blocks("one text")


def test_similarity_is_the_cosine(embedder):
    vectors = embedder.encode(TEXTS)
    table = embedder.similarity(vectors[:2], vectors)
    assert table.shape == (2, 5)
    assert table[1, 3] == pytest.approx(1, abs=1e-5)
    assert embedder.similarity(vectors[0], vectors).shape == (1, 5)
    with pytest.raises(RequestError, match="32 and 8 dimensions"):
        embedder.similarity(vectors, vectors[:, :8])


def test_importing_the_package_imports_no_heavy_library():
    check = (
        "import sys, rayembed\n"
        "assert not {'ray', 'torch', 'transformers'} & sys.modules.keys()\n"
        "from rayembed import Embedder; assert 'torch' in sys.modules and 'ray' not in sys.modules\n"
        "assert not hasattr(rayembed, 'Nothing')"
    )
    result = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT / "platform", capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
