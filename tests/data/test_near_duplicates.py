from rayembed.data.near_duplicates import NearDuplicates

TEXT = "the quick brown fox jumps over the lazy dog while the cat sleeps on the warm roof of the old house"


def test_the_most_similar_text_is_named():
    seen = NearDuplicates(similarity=0.3)
    seen.add("far", TEXT.replace("lazy", "tired").replace("warm", "cold"))
    seen.add("near", TEXT.replace("house", "barn"))
    assert seen.find(TEXT) == "near"
    assert seen.find("a completely different text about the growth of apple trees") is None


def test_search_finds_what_comparing_all_pairs_finds():
    words = [f"word{number}" for number in range(30)]
    texts = [" ".join(words[start : start + 20]) for start in range(8)]
    seen = NearDuplicates(similarity=0.8)
    seen.add(0, texts[0])
    # 18 triples each; shifted by s words, 18 - s of them are shared.
    expected = [(18 - shift) / (18 + shift) >= 0.8 for shift in range(8)]
    assert [seen.find(text) is not None for text in texts] == expected


def test_two_words_are_no_text():
    seen = NearDuplicates()
    seen.add("short", "two words")
    assert len(seen) == 0
    assert seen.find("two words") is None


def test_characters_of_chinese_are_words():
    seen = NearDuplicates()
    seen.add("walk", "今天天气很好我们去公园散步吧然后回家吃饭看电视")
    assert seen.find("今天天气很好我们去公园散步吧然后回家吃饭看电视。") == "walk"
    assert seen.find("明天天气不好我们在家里看书") is None
