"""Benchmarks of the built-in tasks; all others are lists in mteb's registry (see `catalogue`)."""

from rayembed.evaluation.tasks import TASKS

QUICKSTART = "rayembed-quickstart"
OFFLINE = "rayembed-offline"

_QUICKSTART_TASKS = (
    "DocstringRetrieval",
    "WordNetGlossRetrieval",
    "VaderTweets",
    "VaderAmazon",
    "VaderMovies",
    "VaderNewYorkTimes",
    "WordNetLexnameClustering",
    "WordSim353",
    "SimLex999",
)

LOCAL_BENCHMARKS: dict[str, tuple[str, ...]] = {
    QUICKSTART: _QUICKSTART_TASKS,
    OFFLINE: tuple(TASKS),
}
