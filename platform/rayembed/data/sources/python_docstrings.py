"""Docstring -> code: every documented function of the running interpreter's standard library.

The query is the first paragraph of the docstring, the document is the function's source without docstrings.
Rows differ a little between Python versions, so the card records the version.
"""

import ast
import platform
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from rayembed.data.sources.base import BuiltInSource, PairExample

QUERY_WORDS = range(5, 61)
DOCUMENT_CHARACTERS = 1500

# Tests and vendored or generated code, and tkinter, whose several hundred docstrings are near copies.
EXCLUDED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "tkinter", "site-packages", "dist-packages"}

_WITH_DOCSTRING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def read(downloads: Path, library: Path | None = None) -> Iterator[PairExample]:
    """Yield the pairs of `library` (default: the standard library) in order of module name."""
    library = library or Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if EXCLUDED_FOLDERS.isdisjoint(relative.parts):
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            for query, code in documented_functions(path):
                yield PairExample(module, query, code)


def documented_functions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (first docstring paragraph, source without docstrings) of one file's functions and methods."""
    try:
        with tokenize.open(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(stream.read())
    except (SyntaxError, UnicodeDecodeError):
        return  # Some library files are broken on purpose; they hold no functions to learn from.
    nodes = [node for node in ast.walk(tree) if isinstance(node, _WITH_DOCSTRING)]
    docstrings = [ast.get_docstring(node) for node in nodes]
    statements = [len(node.body) for node in nodes]
    # All docstrings go before any code is written out: a function may hold other documented functions.
    for node, docstring in zip(nodes, docstrings, strict=True):
        if docstring is not None:
            node.body = node.body[1:] or [ast.Pass()]
    for node, docstring, count in zip(nodes, docstrings, statements, strict=True):
        query = " ".join((docstring or "").split("\n\n")[0].split())
        if not isinstance(node, ast.ClassDef) and count > 1 and len(query.split()) in QUERY_WORDS:
            yield query, ast.unparse(node)[:DOCUMENT_CHARACTERS]


SOURCE = BuiltInSource(
    name="python-docstrings",
    title="Python standard library: docstring to code",
    kind="pairs",
    task_type="retrieval",
    origin=f"standard library of Python {platform.python_version()}",
    licence="PSF-2.0",
    terms="The rows quote the interpreter's own library and are made on the spot.",
    requires="nothing",
    read=read,
)
