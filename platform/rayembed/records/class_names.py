"""Names of classes that a Hugging Face file stores as numbers."""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayembed.records.base import Unreadable


@dataclass(frozen=True)
class ClassNames:
    """Column -> names of its classes, from the metadata that the `datasets` library writes."""

    names: dict[str, list[str]]

    @staticmethod
    def of(schema: pa.Schema) -> "ClassNames":
        """Class names in the metadata of a schema; none in a file of another origin."""
        stored = (schema.metadata or {}).get(b"huggingface")
        features = json.loads(stored).get("info", {}).get("features", {}) if stored else {}
        return ClassNames(
            {
                column: feature["names"]
                for column, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
            }
        )

    def named(self, record: dict[str, Any] | Unreadable) -> dict[str, Any] | Unreadable:
        """The record with names in place of numbers; -1, which means "no class", becomes None."""
        if isinstance(record, Unreadable):
            return record
        for column, names in self.names.items():
            value = record.get(column)
            if isinstance(value, int):
                record[column] = names[value] if 0 <= value < len(names) else None
        return record
