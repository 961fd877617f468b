from rayembed.common.settings import differences, read_yaml


def test_differences_are_said_in_words():
    before = {"sources": {"a": {"file x": "0" * 64, "file y": "1" * 64}}, "seed": 1, "gone": 2}
    now = {"sources": {"a": {"file x": "2" * 64, "file y": "1" * 64}, "b": {}}, "seed": 3}
    assert list(differences(before, now)) == [
        "sources.a.file x has changed", "sources.b is new", "seed was 1 and is 3", "gone is gone",
    ]  # fmt: skip
    assert not list(differences(before, before))


def test_lists_of_one_length_are_compared_item_by_item():
    before = {"stages": [{"steps": 5, "loss": None}, {"steps": 5}], "keep": ["a"]}
    now = {"stages": [{"steps": 5, "loss": "x"}, {"steps": 6}], "keep": ["a", "b"]}
    assert list(differences(before, now)) == [
        "stages.0.loss was None and is 'x'", "stages.1.steps was 5 and is 6",
        "keep was ['a'] and is ['a', 'b']",
    ]  # fmt: skip


def test_on_and_no_are_names():
    assert read_yaml("{on: 1, no: off, yes: true}") == {"on": 1, "no": "off", "yes": True}
