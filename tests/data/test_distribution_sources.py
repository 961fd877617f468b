"""Sources made from the distribution's packages: their parsers, and what happens where there is no apt."""

import pytest
from typer.testing import CliRunner

from rayembed.cli.data import app
from rayembed.common.errors import ResourceError
from rayembed.data.sources import SOURCES, apt, debian, perl
from rayembed.data.sources.base import LabelExample, PairExample
from rayembed.data.store import build_source

PACKAGES = """\
Package: libfox-dev
Source: fox (1.2-3)
Section: libdevel
Description-md5: 1

Package: fox
Section: games
Description-md5: 2

Package: untranslated
Section: games
Description-md5: 3
"""

TRANSLATION = """\
Package: fox
Description-md5: 2
Description-en: hunt foxes in the wood
 Many words are in this body so that it is long enough to be
 a document of its own.
 .
 It has a second paragraph.

Package: libfox-dev
Description-md5: 1
Description-en: short
 Too short.
"""


@pytest.fixture
def lists(tmp_path, monkeypatch):
    folder = tmp_path / "apt-lists"
    folder.mkdir()
    (folder / "deb_dists_x_main_binary-amd64_Packages").write_text(PACKAGES)
    (folder / "deb_dists_x_main_i18n_Translation-en").write_text(TRANSLATION)
    german = TRANSLATION.replace("Description-en", "Description-de").replace("hunt foxes", "Füchse jagen")
    (folder / "deb_dists_x_main_i18n_Translation-de").write_text(german)
    monkeypatch.setattr(debian, "stanzas", lambda file: apt.parse_stanzas(file.read_text()))
    return tmp_path


def test_descriptions_sections_and_translations(lists):
    body = (
        "Many words are in this body so that it is long enough to be a document of its own.\n"
        "It has a second paragraph."
    )
    assert list(debian.read_descriptions(lists)) == [
        PairExample("fox", "hunt foxes in the wood", body, cluster="fox")
    ]
    assert list(debian.read_sections(lists)) == [LabelExample("fox", body, "games")]
    assert list(debian.read_translations(lists, "de")) == [
        PairExample("fox", "hunt foxes in the wood", "Füchse jagen in the wood", cluster="fox")
    ]
    assert debian.source_of({"Package": "libfox-dev", "Source": "fox (1.2-3)"}) == "fox"


def test_perl_questions_and_messages():
    faq = (
        "=head1 NAME\n\nperlfaq1 - x\n\n=head2 What is C<perl>?\n\n"
        "A L<language|perl> with I<many\nnice> parts.\n\n"
        "=head2 Short?\n\nNo.\n\n=head1 AUTHOR\n\nNobody at all wrote this.\n"
    )
    assert list(perl.questions(faq)) == [("What is perl?", "A language with many nice parts.")]
    diagnostics = (
        "=head1 NAME\n\n=over 4\n\n=item First %s\n\n=item Second E<lt>%sE<gt>\n\n"
        "(W closed) You did C<< something -> wrong >> with it.\n\n=back\n\n=head1 SEE ALSO\n\nMore of it.\n"
    )
    explanation = "You did something -> wrong with it."
    assert list(perl.messages(diagnostics)) == [("First %s", explanation), ("Second <%s>", explanation)]


def test_without_apt_they_are_skipped_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(apt.shutil, "which", lambda name: None)
    with pytest.raises(ResourceError, match="debian-sections cannot be built: this machine has no apt-get"):
        build_source("debian-sections", tmp_path)
    kept = {name: source for name, source in SOURCES.items() if name in ("perlfaq", "debian-bitext-de")}
    monkeypatch.setattr("rayembed.cli.data.SOURCES", kept)
    result = CliRunner().invoke(app, ["build", "--all", "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert result.output.count("skipped, this machine has no apt-get") == 2


def test_a_failing_command_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ResourceError, match=r"`sh -c exit 3` failed: it gave no reason"):
        apt._run(["sh", "-c", "exit 3"])
