"""Human word similarity: WordSim-353 and SimLex-999, for evaluation only.

Both files are test data inside the wheel of gensim, which is read as a zip file and not installed. One wheel
is named by platform and Python version because all carry the same two files.
"""

import functools
import zipfile
from collections.abc import Iterator
from pathlib import Path

from rayembed.common.errors import DataError
from rayembed.common.packages import fetch_package
from rayembed.data.sources.base import BuiltInSource, ScoreExample

PACKAGE, VERSION = "gensim", "4.4.0"
SHA256 = "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
FOLDER = "gensim/test/test_data"


def read_file(downloads: Path, file_name: str) -> Iterator[ScoreExample]:
    """Yield the word pairs of one file."""
    wheel = fetch_package(
        PACKAGE,
        VERSION,
        sha256=SHA256,
        platform="manylinux_2_28_x86_64",
        python_version="3.11",
        cache=downloads,
    )
    yield from parse_scores(read_member(wheel, f"{FOLDER}/{file_name}"))


def read_member(wheel: Path, name: str) -> str:
    """Text of one file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(name).decode("utf-8")
        except KeyError:
            raise DataError(f"{wheel} has no file {name}") from None


def parse_scores(text: str) -> Iterator[ScoreExample]:
    """Parse lines of two words and a score; `#` begins a comment line."""
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            first, second, score = line.split("\t")
            yield ScoreExample(first, second, float(score))


def _source(name: str, title: str, file_name: str) -> BuiltInSource:
    return BuiltInSource(
        name=name,
        title=f"{title}: human similarity of word pairs, test only",
        kind="scores",
        task_type="sts",
        origin=f"{PACKAGE} {VERSION} wheel, {FOLDER}/{file_name}",
        licence="LGPL-2.1",
        terms="The package's licence; the set keeps its authors' terms and is fetched, not shipped.",
        requires="package index",
        read=functools.partial(read_file, file_name=file_name),
    )


SOURCES = (
    _source("wordsim353", "WordSim-353", "wordsim353.tsv"),
    _source("simlex999", "SimLex-999", "simlex999.txt"),
)
