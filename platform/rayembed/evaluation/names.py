"""Names that a user mistyped: the nearest known ones are offered."""

import difflib
from collections.abc import Iterable

_LISTED = 20


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Message for a `name` that is not among the `known` ones of its kind."""
    by_folded_name = {candidate.lower(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.lower(), by_folded_name, n=3, cutoff=0.5)
    offered = [by_folded_name[match] for match in nearest]
    if offered:
        return f"unknown {what} {name!r}; did you mean {' or '.join(offered)}?"
    if len(by_folded_name) <= _LISTED:
        return f"unknown {what} {name!r}; known: {', '.join(by_folded_name.values())}"
    return f"unknown {what} {name!r}; `rayembed evaluate --list` prints the {len(by_folded_name)} known ones"
