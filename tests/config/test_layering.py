"""Recipes that extend others, facts of sources, addresses by name, and all mistakes at once."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from rayembed.common.errors import ConfigError
from rayembed.config.layering import merge
from rayembed.config.loading import load_config
from rayembed.config.run import RunConfig

RECIPES = Path(__file__).resolve().parents[2] / "jobs" / "configs"
STAGES = """
base_model: tiny
data:
  sources:
    nq: {path: nq.jsonl, instruction: Find the answer, negatives_per_query: 2}
    topics: {path: topics.jsonl, kind: labels, in_batch_negatives: false}
    wordnet-glosses: {instruction: Find the definition of this word, mining: {top_k: 9}}
stages:
  - name: retrieval
    steps: 20
    batch_size: 4
    learning_rate: 1.0e-3
    in_batch_negatives: true
    blend: {nq: 100, wordnet-glosses: {weight: 5, negatives_per_query: 1}}
  - name: blend
    steps: 5
    batch_size: 4
    learning_rate: 1.0e-3
    in_batch_negatives: true
    blend: [{source: nq, weight: 2, instruction: Find it}, {source: topics, weight: 1}]
"""


@pytest.fixture
def load(tmp_path):
    """Load `name: x` and the given text, over the recipe above as base.yaml."""
    (tmp_path / "base.yaml").write_text(STAGES)

    def write_and_load(text: str, *overrides: str) -> RunConfig:
        (tmp_path / "own.yaml").write_text("name: own\n" + text)
        return load_config(tmp_path / "own.yaml", overrides)

    return write_and_load


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ([{"name": "x", "n": 1}], [{"name": "x", "m": 2}], [{"name": "x", "n": 1, "m": 2}]),
        (
            [{"source": "x"}, {"source": "y"}],
            {"x": None, "z": 7},
            [{"source": "y"}, {"source": "z", "weight": 7}],
        ),
        (
            [{"name": "a"}, {"name": "b"}, {"name": "c"}],
            [{"name": "c"}, {"name": "d"}, {"name": "a"}],
            [{"name": "c"}, {"name": "b"}, {"name": "a"}, {"name": "d"}],
        ),
        ([{"source": "x", "weight": 1, "cap": 2}], {"x": 5}, [{"source": "x", "weight": 5, "cap": 2}]),
    ],
)
def test_merging(base, over, expected):
    assert merge(base, over) == expected


def test_a_recipe_extends_others_from_first_to_last(load, tmp_path):
    (tmp_path / "more.yaml").write_text("seed: 3\nlora: {rank: 4}\nstages: {retrieval: {steps: 7}}")
    config = load("extends: [base.yaml, more.yaml]\nstages: [{name: retrieval, batch_size: 8}]")
    assert (config.name, config.seed, config.lora.rank) == ("own", 3, 4)
    assert [(stage.name, stage.steps, stage.batch_size) for stage in config.stages] == [
        ("retrieval", 7, 8),
        ("blend", 5, 4),
    ]
    assert load_config(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml"])
def test_a_recipe_anywhere_extends_a_shipped_one(load, name):
    config = load(f"extends: {name}\nseed: 3")
    assert (config.seed, config.base_layers) == (3, 4)


def test_a_recipe_of_the_same_name_extends_the_shipped_one(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("extends: quickstart\nseed: 3")
    config = load_config(tmp_path / "quickstart.yaml")
    assert (config.seed, config.base_layers) == (3, 4)


def test_null_takes_out_what_is_extended(load):
    config = load("extends: base.yaml\nstages: {retrieval: null, blend: {blend: {topics: null}}}")
    assert [[entry.source for entry in stage.blend] for stage in config.stages] == [["nq"]]
    assert load("extends: base.yaml").lora is not None
    assert load("extends: base.yaml\nlora: null").lora is None


def test_recipes_that_extend_in_a_circle_are_refused(load, tmp_path):
    (tmp_path / "base.yaml").write_text("extends: own.yaml")
    with pytest.raises(ConfigError, match=r"circle: own\.yaml -> base\.yaml -> own\.yaml"):
        load("extends: base.yaml")
    with pytest.raises(ConfigError, match=r"no recipe at .*none\.yaml, which .*own\.yaml extends"):
        load("extends: none.yaml")


def test_facts_of_a_source_hold_in_every_blend_unless_it_says_otherwise(load):
    config = load("extends: base.yaml")
    (nq, glosses), (again, topics) = (stage.blend for stage in config.stages)
    assert (nq.weight, nq.instruction, nq.negatives_per_query, nq.in_batch_negatives) == (
        100,
        "Find the answer",
        2,
        True,
    )
    assert (glosses.negatives_per_query, glosses.mining.top_k) == (1, 9)
    assert (again.instruction, again.negatives_per_query) == ("Find it", 2)
    assert not topics.in_batch_negatives  # the source goes before the stage
    assert set(config.data.sources) == {"nq", "topics"}  # a source with facts alone is built in


def test_a_fact_of_the_wrong_kind_is_told_once_at_its_source(load):
    with pytest.raises(ConfigError) as raised:
        load("extends: base.yaml\ndata: {sources: {nq: {symmetric: perhaps}, unused: {labels: maybe}}}")
    told = str(raised.value).split("\n")
    assert len(told) == 3
    assert "data.sources.nq.symmetric" in told[1]
    assert "data.sources.unused.labels" in told[2]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("stages.0.steps=9", lambda config: config.stages[0].steps),
        ("stages.retrieval.steps=9", lambda config: config.stages[0].steps),
        ("stages.blend.steps=9", lambda config: config.stages[1].steps),
        ("stages.blend.nq.weight=9", lambda config: config.stages[1].blend[0].weight),
        ("stages.blend.blend.nq.weight=9", lambda config: config.stages[1].blend[0].weight),
        ("stages.blend.blend.0.weight=9", lambda config: config.stages[1].blend[0].weight),
        ("stages.retrieval.nq=9", lambda config: config.stages[0].blend[0].weight),
        ("stages.blend.warmup_steps=3", lambda config: config.stages[1].warmup_steps * 3),
        (
            "data.sources.wordnet-glosses.mining.top_k=9",
            lambda config: config.stages[0].blend[1].mining.top_k,
        ),
    ],
)
def test_a_setting_is_addressed_by_names_or_numbers(load, override, value):
    assert value(load("extends: base.yaml", override)) == 9


def test_null_at_an_address_takes_an_entry_out(load):
    config = load("extends: base.yaml", "stages.blend.topics=null", "stages.retrieval=null")
    assert [[entry.source for entry in stage.blend] for stage in config.stages] == [["nq"]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.last.steps=9", "no entry 'last'; it has retrieval, blend"),
        (
            "stages.blend.msmarco.weight=9",
            "'msmarco' is neither a setting nor an entry; the entries are nq, topics",
        ),
    ],
)
def test_an_unknown_name_is_told_with_the_known_ones(load, override, message):
    with pytest.raises(ConfigError, match=message):
        load("extends: base.yaml", override)


def test_an_ambiguous_name_is_told_with_its_places():
    raw = {"teachers": [{"name": "a"}], "sources": [{"source": "a"}]}
    from rayembed.config.layering import assign

    with pytest.raises(ConfigError, match="ambiguous: 'a' is an entry of teachers and of sources"):
        assign(raw, "a.weight", 1, lambda _path, _key: False)


def test_all_mistakes_are_told_at_once_with_their_addresses(load):
    with pytest.raises(ConfigError) as raised:
        load(
            "extends: base.yaml\nsed: 1\nlora: {rank: none}",
            "stages.retrieval.batch_size=0",
            "stages.blend.nq.wait=1",
        )
    told = str(raised.value)
    assert "4 mistakes" in told
    assert "unknown key 'sed'; did you mean 'seed'?" in told
    assert "unknown key 'stages.blend.blend.nq.wait'; did you mean 'weight'?" in told
    assert "lora.rank: " in told
    assert "stages.retrieval.batch_size: " in told


DIGESTS = {
    "llm2vec-supervised": "8f5185a8b170a8a6",
    "nv-embed-v1": "b48c9d373781b9be",
    "nv-embed-v2": "856fd6adb8b778ff",
    "nv-embed-v2-reversed": "165e7c6a6bc0dcfa",
    "nv-embed-v2-single-stage": "a41bd16c634e9450",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_resolved_form_of_a_published_recipe_stays(name):
    """The digests are of all settings that are not at their default, from recipes written out in full."""
    resolved = load_config(RECIPES / f"{name}.yaml").model_dump(mode="json", exclude_defaults=True)
    assert hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:16] == DIGESTS[name]


def test_the_three_recipes_of_nv_embed_v2_are_short():
    files = RECIPES.glob("nv-embed-v2*.yaml")
    assert sum(len(file.read_text().splitlines()) for file in files) < 250


def test_settings_that_exclude_each_other_are_all_told(load):
    with pytest.raises(ConfigError) as raised:
        load(
            "extends: base.yaml\nstages: {retrieval: {warmup_steps: 30, sub_batch_size: 2},"
            " blend: {warmup_steps: 5}}"
        )
    assert "3 mistakes" in str(raised.value)
    assert "warmup_steps 30 must be below steps 20" in str(raised.value)
    assert "stages.blend: " in str(raised.value)
