"""Every example of docs/formats.md is built as it stands there."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import yaml

from rayembed.config.data import UserSourceConfig
from rayembed.data.build import build_user_source
from rayembed.data.store import read_split
from rayembed.records import READERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL))


def blocks(section: str) -> list[tuple[str, str, str]]:
    """Language, file name and content of the code blocks."""
    return re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)


def test_every_reader_has_a_section():
    assert len(SECTIONS) == len(READERS)


@pytest.mark.parametrize("title", SECTIONS)
def test_the_example_gives_the_row_that_the_page_shows(title, home, monkeypatch):
    if "deltalake" in SECTIONS[title]:
        pytest.importorskip("deltalake")
    monkeypatch.chdir(home)
    banking = datasets.Dataset.from_dict({"text": ["My card was stolen"], "label": ["lost_or_stolen_card"]})
    task = SimpleNamespace(load_data=lambda: None, dataset={"train": banking})
    monkeypatch.setattr("mteb.get_task", lambda name: task)
    for language, name, content in blocks(SECTIONS[title]):
        if name:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(content)
        elif language == "python":
            exec(content, {})
        elif language == "yaml":
            (declared,) = yaml.safe_load(content).items()
        elif language == "json":
            shown = json.loads(content)
    name, settings = declared
    build_user_source(name, UserSourceConfig(**settings), home / "data")
    rows = read_split(home / "data", name, "train").to_pylist()
    assert shown in [{column: row[column] for column in shown} for row in rows]
