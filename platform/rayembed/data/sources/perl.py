"""Perl's documentation: frequent question -> answer, and message -> explanation."""

import re
from collections.abc import Iterator
from pathlib import Path

from rayembed.data.sources.apt import fetch_files, missing_apt
from rayembed.data.sources.base import BuiltInSource, PairExample

ANSWER_WORDS = 5
ANSWER_CHARACTERS = 3000


def read_questions(downloads: Path) -> Iterator[PairExample]:
    """Yield questions and answers of perlfaq1 to perlfaq9; the question decides the split."""
    for _, pod in fetch_files("perl-doc", downloads, ".pod"):
        if re.search(r"^=head1 NAME\n+perlfaq\d ", pod, flags=re.MULTILINE):
            for question, answer in questions(pod):
                yield PairExample(question, question, answer)


def read_messages(downloads: Path) -> Iterator[PairExample]:
    """Yield messages and explanations of the system's perldiag; those of one explanation share a split."""
    for path in perldiag_files()[:1]:
        for message, explanation in messages(path.read_text(encoding="utf-8")):
            yield PairExample(explanation, message, explanation, cluster=explanation)


def questions(pod: str) -> Iterator[tuple[str, str]]:
    """Second headings and the text below, up to the next heading."""
    for section in re.split(r"^=head2 ", pod, flags=re.MULTILINE)[1:]:
        question, _, answer = section.partition("\n")
        text = plain(re.split(r"^=head1 ", answer, flags=re.MULTILINE)[0])
        if len(text.split()) >= ANSWER_WORDS:
            yield plain(question), text[:ANSWER_CHARACTERS]


def messages(pod: str) -> Iterator[tuple[str, str]]:
    """Items and their explanation without its class, such as `(W closed)`; items in a row share theirs."""
    waiting: list[str] = []
    body = re.split(r"^=back\n+=head1 ", pod, flags=re.MULTILINE)[0]
    for section in re.split(r"^=item ", body, flags=re.MULTILINE)[1:]:
        message, _, rest = section.partition("\n\n")
        waiting.append(plain(message))
        explanation = re.sub(r"^\([A-Z][^)]*\)\s*", "", plain(rest))
        if explanation:
            for item in waiting:
                if len(explanation.split()) >= ANSWER_WORDS:
                    yield item, explanation[:ANSWER_CHARACTERS]
            waiting = []


def plain(pod: str) -> str:
    """Text of POD: marks such as C<code> and L<text|page> are taken off, commands left out."""
    pod = re.sub(r"^=\w+.*$", "", pod, flags=re.MULTILINE)
    for _ in range(3):  # marks stand inside each other
        pod = re.sub(r"\b[A-Z]<<+ (.*?) >>+", r"\1", pod, flags=re.DOTALL)
        pod = re.sub(r"\bL<([^<>|]*\|)?([^<>]*)>", lambda link: (link[1] or "").rstrip("|") or link[2], pod)
        pod = re.sub(r"E<(\w+)>", lambda escape: {"lt": "<", "gt": ">"}.get(escape[1], ""), pod)
        pod = re.sub(r"\b[BCFISXZ]<([^<>]*)>", r"\1", pod)
    return "\n".join(text for text in (" ".join(part.split()) for part in pod.split("\n\n")) if text)


def perldiag_files() -> list[Path]:
    """Where the system's own perl keeps perldiag."""
    return sorted(Path("/usr/share/perl").glob("5*/pod/perldiag.pod"))


def missing_perldiag() -> str | None:
    """Why messages cannot be read; None where they can."""
    return None if perldiag_files() else "this machine has no perldiag.pod below /usr/share/perl"


SOURCES = (
    BuiltInSource(
        name="perlfaq",
        title="Perl: frequent question to answer",
        kind="pairs",
        task_type="retrieval",
        origin="package perl-doc of the distribution, perlfaq1.pod to perlfaq9.pod",
        licence="GPL-1.0-or-later or Artistic-1.0-Perl",
        terms="Perl's own licence; the code in the answers is in the public domain.",
        requires="apt",
        read=read_questions,
        missing=missing_apt,
    ),
    BuiltInSource(
        name="perldiag",
        title="Perl: message to explanation",
        kind="pairs",
        task_type="retrieval",
        origin="perldiag.pod of the system's perl",
        licence="GPL-1.0-or-later or Artistic-1.0-Perl",
        terms="Perl's own licence.",
        requires="Debian's perl",
        read=read_messages,
        missing=missing_perldiag,
    ),
)
