"""Debian's package descriptions: synopsis -> body, body -> section, and English -> German and French.

Rows are made from the lists that apt fetches, and move with the distribution's release. Packages of one
source package describe the same thing, so they share a split and never are each other's negatives.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from rayembed.data.sources.apt import fetch_lists, missing_apt, stanzas
from rayembed.data.sources.base import BuiltInSource, LabelExample, PairExample, Reader
from rayembed.records.schema import Kind

BODY_WORDS = 15
# Sections that say what a package is for; the others name a language or a part, such as documentation.
TOPICS = {
    *("admin", "database", "editors", "education", "electronics", "fonts", "games", "graphics", "hamradio"),
    *("kernel", "mail", "math", "net", "science", "sound", "text", "vcs", "video", "web", "x11"),
}


def read_descriptions(downloads: Path) -> Iterator[PairExample]:
    """Yield synopsis and body of every package with a body of fifteen words or more."""
    lists = fetch_lists(downloads)
    for package, (synopsis, body) in _described(lists, "en"):
        if len(body.split()) >= BODY_WORDS:
            source = source_of(package)
            yield PairExample(source, synopsis, body, cluster=source)


def read_sections(downloads: Path) -> Iterator[LabelExample]:
    """Yield the body of every package of a topical section with its section."""
    lists = fetch_lists(downloads)
    for package, (_, body) in _described(lists, "en"):
        section = package.get("Section", "")
        if section in TOPICS and len(body.split()) >= BODY_WORDS:
            yield LabelExample(source_of(package), body, section)


def read_translations(downloads: Path, language: str) -> Iterator[PairExample]:
    """Yield the English synopsis of every package with its translation."""
    lists = fetch_lists(downloads)
    english = _translations(lists, "en")
    for package, (synopsis, _) in _described(lists, language):
        original = english.get(package["Description-md5"])
        if original and original[0] != synopsis:
            source = source_of(package)
            yield PairExample(source, original[0], synopsis, cluster=source)


def description(value: str) -> tuple[str, str]:
    """Synopsis and body of a description field; ` .` stands for an empty line, indented lines are lists."""
    synopsis, _, rest = value.partition("\n")
    paragraphs = re.split(r"^\.$", rest, flags=re.MULTILINE)
    return synopsis.strip(), "\n".join(
        text for text in (" ".join(part.split()) for part in paragraphs) if text
    )


def source_of(package: dict[str, str]) -> str:
    """Name of the source package, which is left out where it is the package's own."""
    return package.get("Source", package["Package"]).split()[0]


def _described(lists: Path, language: str) -> Iterator[tuple[dict[str, str], tuple[str, str]]]:
    """Packages with a description in a language, each name once, sorted by name."""
    translations = _translations(lists, language)
    packages: dict[str, dict[str, str]] = {}
    for file in sorted(lists.glob("*_main_binary-*_Packages*")):
        for package in stanzas(file):
            if package.get("Description-md5") in translations:
                packages.setdefault(package["Package"], package)
    for name in sorted(packages):
        yield packages[name], translations[packages[name]["Description-md5"]]


def _translations(lists: Path, language: str) -> dict[str, tuple[str, str]]:
    """Digest of the English description -> synopsis and body in a language."""
    found: dict[str, tuple[str, str]] = {}
    for file in sorted(lists.glob(f"*_main_i18n_Translation-{language}*")):
        for stanza in stanzas(file):
            if value := stanza.get(f"Description-{language}"):
                found.setdefault(stanza["Description-md5"], description(value))
    return found


def _source(name: str, title: str, kind: Kind, task_type: str, read: Reader) -> BuiltInSource:
    return BuiltInSource(
        name=name,
        title=title,
        kind=kind,
        task_type=task_type,
        origin="package lists of the distribution, fetched with apt",
        licence="mixed, DFSG-free",
        terms="Each description has its package's free licence; made on your machine, not to be shipped.",
        requires="apt",
        read=read,
        missing=missing_apt,
    )


SOURCES = (
    _source(
        "debian-descriptions",
        "Debian packages: synopsis to description",
        "pairs",
        "retrieval",
        read_descriptions,
    ),
    _source(
        "debian-sections",
        "Debian packages: section of a description, 20 classes",
        "labels",
        "clustering",
        read_sections,
    ),
    *(
        _source(
            f"debian-bitext-{language}",
            f"Debian packages: English to {name} synopsis",
            "pairs",
            "bitext",
            functools.partial(read_translations, language=language),
        )
        for language, name in (("de", "German"), ("fr", "French"))
    ),
)
