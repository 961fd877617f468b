import json

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from rayembed.contract import Contract
from rayembed.contract.ranges import VectorRanges
from rayembed.engine.vector_formats import VectorForm, quantise


@pytest.fixture
def vectors():
    """Unit vectors whose numbers lie around other places than 0, in ranges of other widths."""
    random = np.random.default_rng(0)
    scales, middles = random.uniform(0.3, 2, 64), random.standard_normal(64)
    drawn = (random.standard_normal((200, 64)) * scales + middles).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture
def ranges(vectors):
    return VectorRanges.of(vectors)


def test_numbers_are_those_of_sentence_transformers_with_the_same_ranges(vectors, ranges):
    theirs = quantize_embeddings(vectors, "uint8", ranges=np.array([ranges.low, ranges.high]))
    inside = ((vectors > ranges.low) & (vectors < ranges.high)).all(axis=1)
    ours = quantise(vectors, "uint8", ranges)
    assert (
        np.abs(ours[inside].astype(int) - theirs[inside]).max() <= 1
    )  # theirs are cut off, ours are rounded
    np.testing.assert_array_equal(quantise(vectors, "int8", ranges).astype(int) + 128, ours)
    assert quantise(np.full((1, 64), 9, np.float32), "uint8", ranges).max() == 255


def test_bits_say_what_is_above_the_mean(vectors, ranges):
    bits = np.unpackbits(quantise(vectors, "ubinary", ranges), axis=1)
    np.testing.assert_array_equal(bits, vectors > np.array(ranges.threshold, np.float32))
    assert 0.4 < bits.mean(axis=0).min() < bits.mean(axis=0).max() < 0.6
    assert np.abs((vectors > 0).mean(axis=0) - 0.5).max() > 0.45  # signs say the same of nearly all vectors


@pytest.mark.parametrize("kind", ["int8", "uint8", "binary", "ubinary"])
def test_length_and_neighbours_of_a_vector_do_not_matter_and_zeros_are_numbers_too(vectors, ranges, kind):
    whole = quantise(vectors, kind, ranges)
    np.testing.assert_allclose(quantise(vectors[3:4] * 7, kind, ranges)[0], whole[3], atol=kind.endswith("8"))
    assert quantise(np.zeros((1, 64), np.float32), kind, ranges).shape == whole[:1].shape
    cut = vectors[:, :16]
    unit = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    np.testing.assert_array_equal(quantise(unit, kind, ranges), quantise(cut * 2, kind, ranges))


def test_cut_vectors_are_measured_by_what_is_left(vectors, ranges):
    cut = vectors[:, :16] / np.linalg.norm(vectors[:, :16], axis=1, keepdims=True)
    close = VectorRanges.of(cut).numbers(16)
    for ours, exact, most in zip(ranges.numbers(16), close, (0.25, 0.03, 0.25), strict=True):
        assert np.abs(ours - exact).max() < most
    bits = np.unpackbits(quantise(cut, "ubinary", ranges), axis=1)
    assert 0.35 < bits.mean(axis=0).min() < bits.mean(axis=0).max() < 0.65


def test_a_search_sees_the_numbers_that_are_stored(vectors, ranges):
    integers = quantise(vectors, "int8", ranges).astype(float)
    unit = integers / np.linalg.norm(integers, axis=1, keepdims=True)
    for kind in ("int8", "uint8"):
        searched = VectorForm(format=kind).as_searched(vectors, ranges)
        np.testing.assert_allclose(searched, unit, atol=1e-6)
    bits = np.unpackbits(quantise(vectors, "ubinary", ranges), axis=1) * 2.0 - 1
    np.testing.assert_allclose(VectorForm(format="binary").as_searched(vectors, ranges), bits / 8, atol=1e-6)


def test_a_dimension_that_is_always_the_same_divides_by_no_zero(vectors):
    same = np.tile(vectors[:1], (5, 1))
    with np.errstate(all="raise"):
        assert set(np.abs(quantise(same, "int8", VectorRanges.of(same)).astype(int)).flat) <= {127, 128}


def test_ranges_are_saved_a_line_each_and_contracts_without_them_are_as_they_were(tmp_path, ranges):
    contract = Contract(instructions={"query": "Où?"}, vector_ranges=ranges)
    contract.save(tmp_path)
    assert Contract.load(tmp_path) == contract
    text = (tmp_path / "contract.json").read_text()
    assert "Où?" in text
    assert [line.split(":")[0].strip() for line in text.splitlines()[-7:-2]] == [
        '"vector_ranges"', '"low"', '"threshold"', '"high"', '"length"',
    ]  # fmt: skip
    Contract(instructions={"query": "Où?"}).save(tmp_path)
    content = json.loads((tmp_path / "contract.json").read_text())
    assert content.keys() == json.loads(text).keys() - {"vector_ranges"}
