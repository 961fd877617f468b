"""Stages of all kinds: what they are short for, and what they refuse."""

import pytest

from rayembed.common.errors import ConfigError
from rayembed.config.loading import validate_config
from rayembed.losses import MNTPConfig

BLEND = [{"source": "one", "weight": 1, "in_batch_negatives": True}]
SETTINGS = {"steps": 4, "batch_size": 6, "learning_rate": 1e-2, "blend": BLEND}


def recipe(*stages, base="unused", **changes):
    numbered = [{"name": f"stage-{n}", **SETTINGS, **settings} for n, settings in enumerate(stages)]
    settings = {
        "name": "tiny",
        "base_model": str(base),
        "model": {"pooling": {"type": "latent", "num_latents": 4, "num_heads": 2, "head_width": 8}},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
        "stages": numbered,
    }
    return validate_config(settings | changes, origin="test")


def test_short_keys_stand_for_a_loss_and_one_loss_for_a_list():
    short = recipe({"temperature": 0.5, "document_to_query_weight": 0.3}).stages[0]
    long = recipe({"loss": {"type": "infonce", "temperature": 0.5, "document_to_query_weight": 0.3}}).stages[
        0
    ]
    assert short == long
    assert recipe({"kind": "simcse"}).stages[0].loss[0].temperature == 0.05
    assert recipe({"kind": "mntp"}).stages[0].loss == (MNTPConfig(),)


@pytest.mark.parametrize(
    ("stages", "changes", "message"),
    [
        ([{"temperature": 0.1, "loss": {"type": "infonce"}}], {}, "temperature excludes loss"),
        (
            [{"kind": "mntp", "loss": {"type": "infonce"}}],
            {},
            "kind mntp cannot minimise infonce; it takes mntp",
        ),
        ([{"loss": [{"type": "infonce"}, {"type": "infonce"}]}], {}, "appears twice.*merge the entries"),
        ([{"kind": "mntp", "matryoshka": {"dimensions": [4]}}], {}, "makes no vectors.*remove matryoshka"),
        (
            [{"loss": {"type": "vector_distillation", "teacher": "t"}, "matryoshka": {"dimensions": [4]}}],
            {},
            "compares whole vectors",
        ),
        ([{"matryoshka": {"dimensions": [8, 8]}}], {}, "must differ"),
        ([{"matryoshka": {"dimensions": [8], "weights": [1.0, 2.0]}}], {}, "2 weights for 1 dimensions"),
        (
            [
                {
                    "blend": [{**BLEND[0], "in_batch_negatives": False}],
                    "loss": {"type": "infonce", "query_to_query": 1},
                }
            ],
            {},
            "no source has in_batch_negatives",
        ),
        (
            [{"kind": "simcse", "blend": [{**BLEND[0], "in_batch_negatives": False}]}],
            {},
            "only negatives of simcse",
        ),
        ([{"kind": "simcse", "blend": [{**BLEND[0], "instruction": "Find"}]}], {}, "set symmetric: true"),
        ([{"kind": "mntp", "blend": [{**BLEND[0], "mining": {}}]}], {}, "remove mining"),
        (
            [{"kind": "simcse"}],
            {"lora": {"dropout": 0.0}},
            "set attention_dropout of the stage or lora.dropout",
        ),
        ([{"kind": "mntp"}], {"lora": None}, "kind: mntp needs adapters and lora is null"),
        ([{}, {"adapters": "merge"}], {"lora": None}, "adapters: merge needs adapters"),
        ([{"adapters": "merge"}], {}, "is the first, no adapters come before it"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_remedy(stages, changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(*stages, **changes)
