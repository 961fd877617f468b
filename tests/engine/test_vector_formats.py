import numpy as np
import pytest

from rayembed.common.errors import RequestError
from rayembed.engine.vector_formats import VectorForm, quantise


@pytest.fixture
def vectors():
    random = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    return random / np.linalg.norm(random, axis=1, keepdims=True)


def cosines(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_integers_keep_cosines(vectors, kind):
    integers = quantise(vectors, kind)
    assert integers.dtype == kind
    shifted = integers.astype(float) - (128 if kind == "uint8" else 0)
    np.testing.assert_allclose(cosines(shifted), cosines(vectors), atol=0.01)
    assert np.abs(shifted).max(axis=1).tolist() == [127] * 20


def test_bits_are_signs(vectors):
    unsigned, signed = quantise(vectors, "ubinary"), quantise(vectors, "binary")
    assert unsigned.shape == signed.shape == (20, 8)
    assert (unsigned.dtype, signed.dtype) == (np.uint8, np.int8)
    np.testing.assert_array_equal(np.unpackbits(unsigned, axis=1), vectors > 0)
    np.testing.assert_array_equal(signed.astype(int) + 128, unsigned)


def test_same_conventions_as_sentence_transformers(vectors):
    from sentence_transformers.util import quantize_embeddings

    for kind in ("binary", "ubinary"):
        np.testing.assert_array_equal(quantise(vectors, kind), quantize_embeddings(vectors, kind))


def test_a_vector_does_not_depend_on_its_neighbours(vectors):
    for kind in ("int8", "uint8", "binary", "float16"):
        np.testing.assert_array_equal(quantise(vectors, kind)[3], quantise(vectors[3:4], kind)[0])


def test_zero_vector_and_no_vectors():
    assert quantise(np.zeros((1, 8), np.float32), "int8").tolist() == [[0] * 8]
    assert quantise(np.zeros((0, 8), np.float32), "int8").shape == (0, 8)
    assert quantise(np.zeros((0, 8), np.float32), "ubinary").shape == (0, 1)


def test_what_cannot_be_done_is_refused(vectors):
    with pytest.raises(RequestError, match="multiple of 8, not 63"):
        quantise(vectors[:, :63], "binary")
    with pytest.raises(RequestError, match="unknown number format 'int4'"):
        quantise(vectors, "int4")


def test_vectors_are_scored_as_a_search_over_their_form_sees_them(vectors):
    searched = VectorForm(dimensions=32, format="binary").as_searched(vectors)
    bits = np.unpackbits(quantise(vectors[:, :32], "ubinary"), axis=1).astype(int)
    equal = (bits[:, None] == bits[None]).sum(axis=2)
    np.testing.assert_allclose(searched @ searched.T, (2 * equal - 32) / 32, atol=1e-6)
    for kind in ("int8", "uint8"):
        searched = VectorForm(format=kind).as_searched(vectors)
        np.testing.assert_allclose(
            searched @ searched.T, cosines(quantise(vectors, "int8").astype(float)), atol=1e-6
        )
    np.testing.assert_allclose(VectorForm().as_searched(vectors), vectors, atol=1e-6)
    assert [str(VectorForm()), str(VectorForm(dimensions=128, format="int8"))] == ["float32", "128-int8"]
