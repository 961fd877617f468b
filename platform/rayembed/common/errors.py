"""Errors a user can act on.

Every message names what is wrong, which value it was, and what to do. Entry points print the message alone
and exit with `exit_code`; anything else that escapes is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

_LISTED = 20


class UserError(ValueError):
    """Something the user supplied or can change; base of all errors in this module."""

    exit_code = 2


class ConfigError(UserError):
    """A recipe or an override is unknown, mistyped or contradicts another one."""


class DataError(UserError):
    """A source is missing, empty, mistyped or has too many bad rows."""


class CheckpointError(UserError):
    """A checkpoint or base model is incomplete, of another shape, or was not trained for the request."""


class TrainingError(UserError):
    """Training went out of bounds under the recipe and the data it was given."""


class ResourceError(UserError):
    """A port, memory or disk space that the work needs is not there."""


class RequestError(UserError):
    """An input to the embedding engine or endpoint is outside what the model accepts.

    Attributes:
        parameter: field of a request that is at fault, where it is known.
    """

    def __init__(self, message: str, parameter: str | None = None):
        super().__init__(message)
        self.parameter = parameter


class RefusedItemError(RequestError):
    """A service refuses one input, such as a text that is too long; the next one may be welcome."""


def all_mistakes(origin: str, mistakes: Iterable[str]) -> str:
    """Message for every mistake of `origin`: one in a line, several in a list; empty for none."""
    listed = list(dict.fromkeys(mistakes))
    if len(listed) > 1:
        return "\n  ".join([f"{origin}: {len(listed)} mistakes", *listed])
    return f"{origin}: {listed[0]}" if listed else ""


def unknown_name(what: str, name: str, known: Iterable[str], listing: str = "") -> str:
    """Message for a mistyped `name`: it offers the nearest known ones, else all, or how to list them.

    Args:
        what: kind of the name, such as task.
        name: what the user wrote.
        known: names of that kind.
        listing: command that lists the known names, for kinds with more than twenty.
    """
    by_folded_name = {candidate.lower(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.lower(), by_folded_name, n=3, cutoff=0.5)
    offered = [by_folded_name[match] for match in nearest]
    if offered:
        return f"unknown {what} {name!r}; did you mean {' or '.join(offered)}?"
    if listing and len(by_folded_name) > _LISTED:
        return f"unknown {what} {name!r}; `{listing}` prints the {len(by_folded_name)} known ones"
    return f"unknown {what} {name!r}; known: {', '.join(by_folded_name.values())}"
