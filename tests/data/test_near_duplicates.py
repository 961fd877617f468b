from rayembed.data.near_duplicates import NearDuplicates, shingles

TEXT = "the quick brown fox jumps over the lazy dog while the cat sleeps on the warm roof of the old house"


def test_a_text_with_one_word_changed_is_found_and_another_is_not():
    seen = NearDuplicates(similarity=0.6)
    seen.add("fox", TEXT)
    assert seen.find(TEXT.replace("house", "barn")) == "fox"
    assert seen.find(TEXT.upper() + "!") == "fox"
    assert seen.find("a completely different text about the growth of apple trees in spring") is None
    assert len(seen) == 1


def test_the_most_similar_text_is_the_one_named():
    seen = NearDuplicates(similarity=0.3)
    seen.add("far", TEXT.replace("lazy", "tired").replace("warm", "cold"))
    seen.add("near", TEXT.replace("house", "barn"))
    assert seen.find(TEXT) == "near"


def test_short_texts_are_one_shingle():
    assert list(shingles("Two words")) == ["two words"]
    assert list(shingles("one two three four")) == ["one two three", "two three four"]
