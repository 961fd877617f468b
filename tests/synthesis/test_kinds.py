import json

import numpy as np
import pytest

from rayembed.synthesis.kinds import (
    KINDS,
    Misfit,
    count_words,
    example_prompt,
    parse_tasks,
    parse_triplet,
    tasks_prompt,
)

PASSAGE = " ".join(["word"] * 25)


def answer(**changes):
    return json.dumps({"query": "a query", "positive": "fits", "negative": "does not fit"} | changes)


@pytest.mark.parametrize("wrapping", ["{}", "```json\n{}\n```", "Here you are:\n{}\nGood luck!"])
def test_json_is_found_with_or_without_words_around_it(wrapping):
    assert parse_triplet(wrapping.replace("{}", answer()), "short-short").positive == "fits"
    assert parse_tasks(wrapping.replace("{}", '["Find  a\\npage", "Sort a text"]')) == [
        "Find a page",
        "Sort a text",
    ]


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("I cannot do that", "short-short", "no JSON"),
        ('{"query": "a", ', "short-short", "no JSON"),
        ('{"query": }', "short-short", "broken JSON"),
        ('{"query": "a", "positive": "b"}', "short-short", "negative: missing"),
        (answer(positive=["b"]), "short-short", "positive: string_type"),
        (answer(negative="  "), "short-short", "negative: string_too_short"),
        (answer(negative="FITS"), "short-short", "two of the three texts are the same"),
        (answer(), "short-long", "positive is too short for a passage"),
        (answer(positive=PASSAGE), "long-short", "query is too short for a passage"),
        (answer(query=PASSAGE), "long-long", "positive is too short for a passage"),
    ],
)
def test_an_answer_that_does_not_fit_says_why(text, kind, reason):
    with pytest.raises(Misfit, match=reason):
        parse_triplet(text, kind)


def test_passages_of_the_right_side_are_accepted():
    assert parse_triplet(answer(positive=PASSAGE), "short-long").positive == PASSAGE
    assert parse_triplet(answer(query=PASSAGE), "long-short").query == PASSAGE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one two, three", 3),
        ("锁可以把门关上。只有带钥匙的人才能打开", 9),
        ("กุญแจใช้เปิดประตูบ้าน", 5),
        ("GPU 加速 works", 3),
    ],
)
def test_words_are_counted_in_scripts_without_blanks(text, words):
    assert count_words(text) == words


@pytest.mark.parametrize("text", ["[]", '["a", 3]', '{"tasks": "none"}', "nothing"])
def test_a_list_of_tasks_must_be_texts(text):
    with pytest.raises(Misfit):
        parse_tasks(text)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_name_the_task_and_the_languages_and_differ_with_the_seed(kind):
    prompts = {
        example_prompt(
            kind,
            task="Find a thing",
            languages=("English", "German"),
            generator=np.random.default_rng(seed),
            grades=(4.5, 2),
        )
        for seed in range(12)
    }
    assert len(prompts) > 3
    for prompt in prompts:
        assert "English" in prompt
        assert ("Find a thing" in prompt) == KINDS[kind].invents_tasks
        assert ("German" in prompt) == (kind == "bitext")
        assert ("is 4.5;" in prompt) == KINDS[kind].graded
        assert all(name in prompt for name in ('"query"', '"positive"', '"negative"'))


def test_the_first_step_asks_for_so_many_tasks_in_the_language():
    for kind in ("short-long", "long-short", "short-short", "long-long"):
        prompt = tasks_prompt(kind, count=7, language="French", generator=np.random.default_rng(0))
        assert "Invent 7 such tasks" in prompt
        assert "French" in prompt
