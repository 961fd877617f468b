"""Write docs/configuration.md from the settings' own types, defaults and descriptions.

python scripts/make_configuration_docs.py
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.config import RunConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

<!-- Written by scripts/make_configuration_docs.py; change the descriptions in the code and run it again. -->

A run is one YAML file, a recipe; `jobs/configs/quickstart.yaml` is a complete one. Override any setting on
the command line by its dotted name, with a YAML value: `--set stages.0.steps=20 --set lora=null`. Unknown
keys, missing keys and wrong values are refused by name. `--dry-run` prints the recipe with every default.

Relative paths start at the workspace: the folder in `RAYEMBED_HOME`, or the current one. [Stop and
resume](resume.md#what-may-change-between-start-and-resume) says what may change while a run is unfinished.
"""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

Schema = dict[str, Any]


def page() -> str:
    """The whole page."""
    schema = RunConfig.model_json_schema()
    definitions = schema["$defs"]
    sections = [INTRODUCTION, *_sections("", schema, definitions)]
    return "\n".join(sections)


def _sections(path: str, schema: Schema, definitions: Schema, variant: str | None = None) -> Iterator[str]:
    """A heading and a table for one group of settings, then those of the groups in it."""
    yield _heading(path, variant)
    if path:
        yield _first_paragraph(schema) + "\n"
    properties = {
        key: field for key, field in schema["properties"].items() if variant is None or key != "type"
    }
    if properties:
        yield "| key | value | default | meaning |\n|---|---|---|---|"
        required = schema.get("required", ())
        for key, field in properties.items():
            default = "required" if key in required else _default(field)
            meaning = field.get("description", "").replace("None", "`null`").replace("|", "\\|")
            yield f"| `{key}` | {_kind(field)} | {default} | {meaning} |"
        yield ""
    for key, field in properties.items():
        yield from _nested(f"{path}.{key}".lstrip("."), field, definitions)


def _nested(path: str, field: Schema, definitions: Schema) -> Iterator[str]:
    """Sections of the groups that a setting holds, if it holds any."""
    if "$ref" in field:
        yield from _sections(path, _follow(field, definitions), definitions)
    elif "discriminator" in field:
        for name, reference in field["discriminator"]["mapping"].items():
            yield from _sections(path, _follow({"$ref": reference}, definitions), definitions, name)
    elif "anyOf" in field:
        for choice in field["anyOf"]:
            yield from _nested(path, choice, definitions)
    elif field.get("type") == "array":
        yield from _nested(f"{path}.N", field["items"], definitions)
    elif isinstance(field.get("additionalProperties"), dict):
        yield from _nested(f"{path}.NAME", field["additionalProperties"], definitions)


def _heading(path: str, variant: str | None) -> str:
    if not path:
        return "## The run\n"
    return f"## `{path}`\n" if variant is None else f"## `{path}` of type `{variant}`\n"


def _first_paragraph(schema: Schema) -> str:
    return " ".join(schema["description"].split("\n\n")[0].split())


def _follow(field: Schema, definitions: Schema) -> Schema:
    return definitions[field["$ref"].rsplit("/", 1)[-1]]


def _kind(field: Schema) -> str:
    """What may be written there, in words."""
    if "anyOf" in field:
        return " or ".join(_kind(choice) for choice in field["anyOf"])
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "$ref" in field or "discriminator" in field:
        return "settings"
    if field["type"] == "array":
        return "list of texts" if field["items"].get("type") == "string" else "list of settings"
    if field["type"] == "object":
        return "name → text" if field["additionalProperties"].get("type") == "string" else "name → settings"
    names = {"string": "text", "boolean": "`true` or `false`", "null": "`null`"}
    bounds = [f"{sign} {field[bound]:g}" for bound, sign in BOUNDS.items() if bound in field]
    return " ".join([names.get(field["type"], field["type"]), ", ".join(bounds)]).strip()


def _default(field: Schema) -> str:
    if "default" not in field:
        return "empty"
    default = field["default"]
    if isinstance(default, dict):
        return f"type `{default['type']}`" if "type" in default else "as below"
    if isinstance(default, str):
        return f"`{json.dumps(default) if default != default.strip() else default}`"
    return f"`{json.dumps(default)}`"


if __name__ == "__main__":
    PAGE.write_text(page())
