"""Pages agree with the code and with each other."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from rayembed.cli.main import app
from scripts.make_configuration_docs import PAGE, page

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
by_name = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


UNUSUAL = re.compile(r"\b(beside|cure|the words|so that .* so that)\b", flags=re.IGNORECASE)
LONGEST_SENTENCE = 32  # words; the rule is 25, this leaves room for lists of names


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a page, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_commands(text: str) -> list[str]:
    """Lines after a `$` in console blocks, continued ones joined, without comments."""
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def as_rayembed(words: list[str]) -> list[str]:
    """`[ray job submit ... --] python jobs/VERB.py ...` as `rayembed VERB ...`; others as they are."""
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :]
    if words[0] == "python" and words[1].startswith("jobs/"):
        return ["rayembed", Path(words[1]).stem.replace("_", "-"), *words[2:]]
    return words


def test_the_page_on_configuration_is_up_to_date():
    assert PAGE.read_text() == page(), "run `python scripts/make_configuration_docs.py`"


def test_every_setting_is_described():
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"({path.name})" not in index] == [
        "index.md"
    ]


@by_name
def test_links_lead_somewhere(path):
    targets = re.findall(r"\]\((?!https?:)([^)\s]*)\)", path.read_text())
    for target in targets:
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@by_name
def test_commands_have_the_options_that_the_page_gives_them(path):
    for line in shell_commands(path.read_text()):
        name, *arguments = as_rayembed(shlex.split(line, comments=True))
        if name != "rayembed":
            continue
        command = typer.main.get_command(app)
        while isinstance(command, typer.core.TyperGroup):
            assert arguments[0] in command.commands, line
            command = command.commands[arguments.pop(0)]
        with command.make_context(line, arguments):
            pass


@by_name
def test_the_prose_has_usual_words_and_short_sentences(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    assert UNUSUAL.findall(text) == []
    if path != PAGE:  # its sentences stand in the code
        blocks = re.split(r"\n\s*\n|\n(?=[-|\d])|\|", text)
        sentences = [part.split() for block in blocks for part in re.split(r"(?<=[.!?;:])\s+", block)]
        assert [" ".join(words) for words in sentences if len(words) > LONGEST_SENTENCE] == []


@by_name
def test_files_and_imports_that_a_page_names_exist(path):
    text = path.read_text()
    named = re.findall(
        r"`((?:platform|jobs|benchmarks|serve|deploy|scripts|tests)/[\w./-]*|[\w/]+/\w+\.py)`", text
    )
    files = [file for file in named if "my_" not in file]
    folders = (ROOT, ROOT / "platform" / "rayembed")
    assert [file for file in files if not any((folder / file).exists() for folder in folders)] == []
    for module, names in re.findall(r"^from (rayembed[\w.]*) import ([\w, ]+)$", text, flags=re.MULTILINE):
        loaded = importlib.import_module(module)
        assert [name for name in names.split(", ") if not hasattr(loaded, name)] == [], module
