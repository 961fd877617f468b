import numpy as np
import pytest

from rayembed.embedding.number_formats import bytes_per_vector, in_format


def test_float_formats_keep_the_numbers():
    vectors = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    np.testing.assert_array_equal(in_format(vectors, "float32"), vectors)
    half = in_format(vectors, "float16")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, vectors, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "size"),
    [("float32", 48), ("float16", 24), ("int8", 12), ("uint8", 12), ("binary", 2), ("ubinary", 2)],
)
def test_sizes(name, size):
    assert bytes_per_vector(12, name) == size
