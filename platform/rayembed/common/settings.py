"""The base of all settings."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
