"""Prompts and pages from templates that lie in a package: the one way to set up Jinja."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def templates(package: str, folder: str = ".", *, html: bool = False) -> Environment:
    """Templates of a folder in a package; a missing value is an error, and a tag leaves no empty line.

    Args:
        package: such as rayembed.reports.
        folder: in the package.
        html: escape texts.
    """
    return Environment(
        loader=PackageLoader(package, folder),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
