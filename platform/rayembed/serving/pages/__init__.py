"""Pages for people, without anything from another host."""

from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_templates = Environment(
    loader=PackageLoader("rayembed.serving.pages", "."), autoescape=True, undefined=StrictUndefined
)
ASSETS = {"playground.js": "text/javascript", "style.css": "text/css"}


def render(template: str, **values: Any) -> str:
    """A page from its template."""
    return _templates.get_template(template).render(**values)


def asset(name: str) -> bytes:
    """A file that pages refer to."""
    return resources.files(__name__).joinpath(name).read_bytes()
