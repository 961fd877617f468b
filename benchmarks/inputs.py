"""What several benchmarks work on: natural texts, and the first stage of the quickstart."""

import random
from pathlib import Path

from rayembed.common.paths import workspace
from rayembed.config.loading import load_config
from rayembed.config.run import RunConfig
from rayembed.data.store import build_source, read_split

RECIPE = Path(__file__).resolve().parents[1] / "jobs" / "configs" / "quickstart.yaml"


def natural_texts(count: int) -> list[str]:
    """Distinct docstrings, code of their functions, and glosses, a third each, in random order."""
    data = workspace() / "data"
    for source in ("python-docstrings", "wordnet-glosses"):
        build_source(source, data)
    pairs, glosses = (read_split(data, name, "train") for name in ("python-docstrings", "wordnet-glosses"))
    pools = [
        pairs["query"].to_pylist(),
        [row[0] for row in pairs["positives"].to_pylist()],
        [row[0] for row in glosses["positives"].to_pylist()],
    ]
    share = -(-count // len(pools))
    texts = [text for pool in pools for text in list(dict.fromkeys(pool))[:share]]
    random.Random(0).shuffle(texts)
    return texts[:count]


def quickstart(layers: int | None = None, **stage: object) -> RunConfig:
    """The quickstart's recipe with its first stage changed and the second left out.

    Args:
        layers: of the base model; None: the recipe's.
        stage: settings of the stage.
    """
    config = load_config(RECIPE, [] if layers is None else [f"base_layers={layers}"])
    return config.model_copy(update={"stages": (config.stages[0].model_copy(update=stage),)})
