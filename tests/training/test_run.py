"""Whose run folder it is."""

import pytest
import yaml

from rayembed.common.errors import ConfigError
from rayembed.training.run import claim_run_folder
from tests.training.recipes import tiny_recipe as recipe
from tests.training.sources import stage


def test_run_folder_of_another_recipe_is_refused(home):
    folder = claim_run_folder(recipe())
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["stages"][0]["batch_size"] == 6
    assert claim_run_folder(recipe(training={"checkpoint_every": 7})) == folder
    with pytest.raises(ConfigError, match=r"stages\.0\.steps was 4 and is 5"):
        claim_run_folder(recipe(stages=[stage(steps=5).model_dump(mode="json")]))
