import json
from pathlib import Path

import pytest

from rayembed.cli import mining_rounds as rounds
from rayembed.common.errors import ConfigError
from rayembed.config.loading import load_config
from rayembed.data.build import declared_source
from rayembed.data.contamination import compared_sources

ROOT = Path(__file__).resolve().parents[2]
TRAIN = load_config(ROOT / "jobs/configs/quickstart.yaml").model_dump(mode="json") | {
    "validation": {"tasks": ["DocstringRetrieval"]}
}
DISTILL = TRAIN | {"name": "learn"}
MINE = {
    "teachers": {"words": {"kind": "bm25"}},
    "sources": [{"source": "python-docstrings", "teachers": ["words"]}],
}
JUDGED = MINE | {"rescoring": {"kind": "cross-encoder", "path": "judge"}}


class Rounds:
    """In place of mining and training, with the score of each round."""

    def __init__(self, home, monkeypatch, scores=()):
        self.home, self.scores, self.mined, self.trained = home, iter(scores), [], []
        monkeypatch.setattr("rayembed.mining.run.mine", self.mine)
        monkeypatch.setattr(rounds, "train_and_score", self.train)

    def mine(self, recipe):
        self.mined.append(recipe)
        folder = self.home / recipe.output / "python-docstrings"
        folder.mkdir()
        (folder / "report.md").write_text("done")

    def train(self, config):
        self.trained.append(config)
        folder = self.home / "runs" / config.name
        if not folder.exists():  # a run that is finished is not trained again
            folder.mkdir(parents=True)
            records = [{"stage": "blend", "step": 9, "score": next(self.scores)}]
            records += [{"stage": "blend", "step": 20, "score": 0.0}]  # the best checkpoint is kept
            (folder / "validation.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
        return folder / "model"

    @property
    def teachers(self):
        return [[getattr(one, "path", one.kind) for one in recipe.teachers.values()] for recipe in self.mined]


def test_each_round_replaces_its_teacher_until_one_is_no_better_and_a_distillation_follows(
    home, monkeypatch, capsys
):
    found = Rounds(home, monkeypatch, [0.5, 0.6, 0.6, 0.7])
    models = [str(home / f"runs/quickstart-round-{number}/model") for number in (1, 2)]
    model = rounds.mining_rounds(TRAIN, JUDGED, 5, False, DISTILL)
    assert model == home / "runs/learn-distilled/model"
    assert found.teachers == [["bm25"], [models[0]], [models[1]], [models[1]]]
    assert [recipe.rescoring is not None for recipe in found.mined] == [False, False, False, True]
    assert {recipe.sources[0].teachers for recipe in found.mined[1:]} == {None}
    assert {config.base_model for config in found.trained} == {"smollm2-135m"}
    assert "round-3 scores no higher" in capsys.readouterr().out
    # What is finished is not mined again.
    assert rounds.mining_rounds(TRAIN, JUDGED, 5, False, DISTILL) == model
    assert len(found.mined) == 4
    with pytest.raises(ConfigError, match=r"quickstart-round-1 was mined with another recipe .*teachers"):
        rounds.mining_rounds(TRAIN, MINE | {"sources": [{"source": "python-docstrings", "top_k": 7}]}, 1)


def test_a_warm_start_trains_the_last_model_further_without_its_mntp_stage(home, monkeypatch):
    found = Rounds(home, monkeypatch, [0.5, 0.6])
    mntp = {"name": "mntp", "kind": "mntp", "steps": 1, "batch_size": 2, "learning_rate": 1e-3,
            "blend": TRAIN["stages"][0]["blend"]}  # fmt: skip
    train = TRAIN | {"stages": [mntp, *TRAIN["stages"]]}
    assert rounds.mining_rounds(train, JUDGED, 2, True) == home / "runs/quickstart-round-2/model"
    first, second = found.trained
    assert (first.base_model, first.base_layers, len(first.stages)) == ("smollm2-135m", 4, 3)
    assert (second.base_model, second.base_layers) == (str(home / "runs/quickstart-round-1/model"), None)
    assert [stage.name for stage in second.stages] == ["retrieval", "blend"]
    assert found.mined[1].rescoring is not None  # without a distillation in every round


@pytest.mark.parametrize(
    ("mine", "distill", "message"),
    [
        (MINE | {"sources": [{"source": "simlex999"}]}, None, "does not train on simlex999"),
        (MINE, DISTILL, "has no rescoring"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_before_the_first_round(
    home, monkeypatch, mine, distill, message
):
    found = Rounds(home, monkeypatch)
    with pytest.raises(ConfigError, match=message):
        rounds.mining_rounds(TRAIN, mine, 1, False, distill)
    assert found.mined == []


def test_a_later_round_trains_on_the_mined_rows_only_where_there_are_some():
    config = load_config(ROOT / "jobs/configs/quickstart.yaml")
    later = rounds.training_of_round(config, "later", {"python-docstrings": Path("/mined/train.parquet")})
    assert later.name == "later"
    mined = later.data.sources["python-docstrings-mined"]
    assert (mined.path, mined.derived_from) == ("/mined/train.parquet", "python-docstrings")
    assert declared_source(later.data, "python-docstrings-mined").licence == "PSF-2.0"
    assert "python-docstrings" in compared_sources(later.data, ["python-docstrings-mined"])
    for before, after in zip(config.stages, later.stages, strict=True):
        for old, new in zip(before.blend, after.blend, strict=True):
            if old.source == "python-docstrings":
                assert new == old.model_copy(update={"source": "python-docstrings-mined", "mining": None})
            else:
                assert new == old
