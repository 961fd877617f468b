from pathlib import Path
from typing import Any

import pytest
import yaml

from rayembed.common.errors import ConfigError
from rayembed.config.loading import load_config
from rayembed.config.run import RunConfig
from rayembed.data.sources import SOURCES
from rayembed.training.prepare import check_sources

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "jobs" / "configs").glob("*.yaml"))
RECIPES = [
    path for path in CONFIGS if "stages" in yaml.safe_load(path.read_text())
]  # the others do not train


def recipe(**changes: Any) -> dict[str, Any]:
    stage = {
        "name": "retrieval",
        "steps": 10,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "blend": [{"source": "python-docstrings", "weight": 1, "in_batch_negatives": True}],
    }
    return {"name": "tiny", "base_model": "smollm2-135m", "stages": [stage], **changes}


@pytest.fixture
def load(tmp_path):
    """Write a recipe and load it with overrides."""

    def write_and_load(content: object, *overrides: str) -> RunConfig:
        path = tmp_path / "recipe.yaml"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return load_config(path, overrides)

    return write_and_load


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_name_known_sources(path):
    config = load_config(path)
    check_sources(config)
    assert config.name == path.stem
    known = SOURCES.keys() | config.data.sources.keys()
    blended = {entry.source for stage in config.stages for entry in stage.blend}
    assert blended <= known
    assert config.data.contamination.against or blended & SOURCES.keys(), "the guard compares nothing"


def test_the_resolved_recipe_loads_to_the_same_run(load):
    config = load(recipe())
    assert load(config.to_yaml()) == config
    assert yaml.safe_load(config.to_yaml())["lora"]["rank"] == 16  # defaults are spelled out


def test_overrides_reach_into_lists_and_missing_groups(load):
    config = load(recipe(), "stages.0.steps=3", "training.workers=2", "lora=null", "name=other")
    assert (config.stages[0].steps, config.training.workers, config.lora, config.name) == (
        3,
        2,
        None,
        "other",
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.steps", "'stages.0.steps' must have the form key.subkey=value"),
        ("=3", "must have the form"),
        ("stages.7.steps=3", "'stages.7.steps' cannot be set there"),
        ("stages.first.steps=3", "'stages.first.steps' cannot be set there"),
        ("name.inner=3", "'name.inner' cannot be set there"),
        ("name=[1", "not valid YAML"),
    ],
)
def test_an_override_that_does_not_fit_is_quoted(load, override, message):
    with pytest.raises(ConfigError, match=message):
        load(recipe(), override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=3", "unknown key 'sed'; did you mean 'seed'?"),
        ("stages.0.stepz=3", "unknown key 'stages.retrieval.stepz'; did you mean 'steps'?"),
        ("training.worker=3", "unknown key 'training.worker'; did you mean 'workers'?"),
        ("xyzzy=1", "unknown key 'xyzzy'; remove it"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(load, override, message):
    with pytest.raises(ConfigError) as raised:
        load(recipe(), override)
    assert str(raised.value).endswith(message)


@pytest.mark.parametrize("key", ["name", "base_model", "stages"])
def test_a_missing_key_is_named(load, key):
    content = recipe()
    del content[key]
    with pytest.raises(ConfigError, match=f"missing key '{key}'; add it"):
        load(content)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("stages.0.steps=many", ["stages.retrieval.steps", "'many'"]),
        ("stages.0.learning_rate=-1", ["stages.retrieval.learning_rate", "-1"]),
        ("training.zero_stage=4", ["training.zero_stage", "4"]),
        ("training.precision=fp8", ["training.precision", "'fp8'", "'bf16'"]),
        ("training.precision=fp16", ["training.precision fp16", "train in bf16 or fp32"]),
        ("name=Not/a/name", ["name", "'Not/a/name'"]),
        ("model.pooling={type: maximum}", ["model.pooling", "maximum", "'latent'"]),
    ],
)
def test_a_wrong_value_is_shown_with_its_key(load, override, parts):
    with pytest.raises(ConfigError) as raised:
        load(recipe(), override)
    assert all(part in str(raised.value) for part in parts), str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.0.warmup_steps=10"], "warmup_steps 10 must be below steps 10"),
        (["training.workers=5"], "batch_size 4 is below training.workers 5"),
        (
            ["stages.0.blend.0.in_batch_negatives=false", "stages.0.blend.0.negatives_per_query=0"],
            "source python-docstrings: .* nothing to learn from",
        ),
        (
            ["contract.max_length=64", "stages.0.blend.0.query_max_length=65"],
            "source python-docstrings: query_max_length 65 is above contract.max_length 64",
        ),
        (["training.min_workers=2"], r"min_workers 2 is above training\.workers 1.*lower it or raise"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(load, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(recipe(), *overrides)


def test_names_within_a_run_differ(load):
    content = recipe()
    content["stages"] *= 2
    with pytest.raises(ConfigError, match="two stages share a name"):
        load(content)
    content = recipe()
    content["stages"][0]["blend"] *= 2
    with pytest.raises(ConfigError, match="a source appears twice"):
        load(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b", "must hold a mapping of settings, not list"),
        ("name: a\nseed: 1\nname: b\n", "the key 'name' is there twice; remove one"),
        ("data: {sources: {x: {label_texts: {1: a, '1': b}}}}", "the key '1' is there twice"),
        (b"name: K\xf6ln\n", "not valid YAML: .*invalid start byte"),
        ("base: &base {a: 1}\nname: {<<: *base, a: 2}\n", "name: Input should be a valid string"),
        ("name: 5\n".encode("utf-16"), "name: Input should be a valid string"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(load, content, message):
    with pytest.raises(ConfigError, match=message):
        load(content)


def test_a_missing_file_points_to_the_shipped_recipes(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe at .*name of a shipped one: .*quickstart"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.blend.0.source=nowhere", "unknown source 'nowhere'.*python-docstrings"),
        ("stages.0.blend.0.source=simlex999", "simlex999 is for evaluation only"),
        (
            "stages.0.blend.0={source: vader-tweets, weight: 1, in_batch_negatives: false, mining: {}}",
            "remove mining",
        ),
    ],
)
def test_a_source_must_fit_its_use(load, override, message):
    with pytest.raises(ConfigError, match=message):
        check_sources(load(recipe(), override))


def test_all_sources_that_do_not_fit_are_told_at_once(load):
    entry = {"weight": 1, "in_batch_negatives": True}
    blend = [{"source": "nowhere", **entry}, {"source": "simlex999", **entry}]
    with pytest.raises(ConfigError, match=r"(?s)2 mistakes.*unknown source 'nowhere'.*simlex999 is for eval"):
        check_sources(load(recipe(), f"stages.0.blend={yaml.safe_dump(blend, default_flow_style=True)}"))


def test_an_address_is_not_told_twice(load):
    with pytest.raises(ConfigError, match=r"stages\.\w+: warmup_steps 99 must be below steps"):
        load(recipe(), "stages.0.warmup_steps=99")
