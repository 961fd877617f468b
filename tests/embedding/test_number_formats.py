import numpy as np
import pytest

from rayembed.embedding.number_formats import bytes_per_vector, in_format


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((20, 576)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / norms


def test_eight_bits_keep_the_direction(vectors):
    signed = in_format(vectors, "int8")
    assert signed.dtype == np.int8
    assert np.abs(signed.astype(int)).max(axis=1).tolist() == [127] * 20
    assert cosines(signed.astype(np.float32), vectors).min() > 0.9998
    unsigned = in_format(vectors, "uint8")
    assert unsigned.dtype == np.uint8
    np.testing.assert_array_equal(unsigned.astype(int) - 128, signed)


def test_bits_are_the_signs(vectors):
    bits = in_format(vectors, "ubinary")
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1), vectors > 0)
    np.testing.assert_array_equal(in_format(vectors, "binary").astype(int) + 128, bits)


def test_binary_formats_are_those_of_sentence_transformers(vectors):
    quantization = pytest.importorskip("sentence_transformers.quantization")
    for name in ("binary", "ubinary"):
        theirs = quantization.quantize_embeddings(vectors, precision=name)
        np.testing.assert_array_equal(in_format(vectors, name), theirs)


@pytest.mark.parametrize(
    ("name", "size"),
    [("float32", 48), ("float16", 24), ("int8", 12), ("uint8", 12), ("binary", 2), ("ubinary", 2)],
)
def test_sizes(name, size):
    assert bytes_per_vector(12, name) == size
