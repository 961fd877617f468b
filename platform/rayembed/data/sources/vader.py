"""Sentiment of four domains: the ground truth behind VADER (Hutto and Gilbert, ICWSM 2014).

Each text has the mean of twenty human ratings in [-4, 4]. The files are in the source distribution of the
package vaderSentiment, as an archive inside the archive; the wheel does not have them.
"""

import functools
import html
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from rayembed.common.errors import DataError
from rayembed.common.packages import fetch_package
from rayembed.data.sources.base import BuiltInSource, LabelExample

PACKAGE, VERSION = "vaderSentiment", "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER_ARCHIVE = "hutto_ICWSM_2014.tar.gz"

# Ratings nearer to zero than this are neutral or disputed and left out.
CLEAR_RATING = 1.0


def read_domain(downloads: Path, file_stem: str) -> Iterator[LabelExample]:
    """Yield the clearly positive and negative texts of one domain."""
    archive = fetch_package(PACKAGE, VERSION, sha256=SHA256, kind="sdist", cache=downloads)
    yield from parse_ratings(read_member(archive, f"{file_stem}_GroundTruth.txt"))


def read_member(archive: Path, name: str) -> str:
    """Text of one file of the inner archive, read in memory: nothing is extracted to disk."""
    with (
        tarfile.open(archive) as outer,
        tarfile.open(fileobj=io.BytesIO(_member(outer, INNER_ARCHIVE))) as inner,
    ):
        return _member(inner, name).decode("utf-8")


def parse_ratings(text: str) -> Iterator[LabelExample]:
    """Parse lines of id, rating and text. An id `12_3` is the third snippet of document 12."""
    for line in text.splitlines():
        identifier, rating, snippet = line.split("\t", maxsplit=2)
        if abs(float(rating)) >= CLEAR_RATING:
            label = "positive" if float(rating) > 0 else "negative"
            yield LabelExample(identifier.split("_")[0], html.unescape(snippet).strip(), label)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    for member in archive:
        if member.isfile() and Path(member.name).name == name:
            stream = archive.extractfile(member)
            assert stream is not None
            return stream.read()
    raise DataError(f"the archive of {PACKAGE} {VERSION} has no file {name}")


def _source(domain: str, title: str, file_stem: str) -> BuiltInSource:
    return BuiltInSource(
        name=f"vader-{domain}",
        title=f"Sentiment of {title}, 2 classes",
        kind="labels",
        task_type="classification",
        origin=f"{PACKAGE} {VERSION}, source distribution",
        licence="MIT",
        terms="The package's licence; the texts are by their authors and are fetched, not shipped.",
        requires="package index",
        read=functools.partial(read_domain, file_stem=file_stem),
    )


SOURCES = (
    _source("tweets", "tweets", "tweets"),
    _source("amazon", "product review snippets", "amazonReviewSnippets"),
    _source("movies", "film review sentences", "movieReviewSnippets"),
    _source("nytimes", "newspaper editorial snippets", "nytEditorialSnippets"),
)
