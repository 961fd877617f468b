"""Errors a user can act on.

Every message names what is wrong, which value it was, and what to do. Entry points print the message alone
and exit with `exit_code`; anything else that escapes is a bug and keeps its traceback.
"""


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
    """An input to the embedding engine or endpoint is outside what the model accepts."""
