"""Benchmarks of the built-in tasks; all others are lists in mteb's registry (see `catalogue`)."""

from rayembed.data.sources import SOURCES
from rayembed.evaluation.tasks import TASKS

QUICKSTART = "rayembed-quickstart"
OFFLINE = "rayembed-offline"
PACKAGES = "rayembed-packages"

_ANYWHERE = ("nothing", "package index")  # what a source may require to be made on any machine
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
    PACKAGES: tuple(name for name, task in TASKS.items() if SOURCES[task.source].requires in _ANYWHERE),
}
