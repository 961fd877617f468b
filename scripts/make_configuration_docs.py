"""Write docs/configuration.md from the settings' own types, defaults and descriptions.

python scripts/make_configuration_docs.py
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.config.run import RunConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

<!-- Written by scripts/make_configuration_docs.py; change the descriptions in the code and run it again. -->

A run is one YAML file, a recipe; `jobs/configs/quickstart.yaml` is a complete one. All mistakes of a recipe
are told at once, each with its address. `--dry-run` prints the recipe with every default.

## Extend a recipe

`extends` names one recipe or a list of them: files in the recipe's own folder, or shipped recipes:

```yaml
extends: nv-embed-v2.yaml
name: only-the-blend
stages:
  retrieval: null        # null takes something out
  blend:                 # entries of a list are changed by their name
    steps: 38000
    blend: {nq: 200}     # a number is the weight of a source
```

Mappings merge. Lists whose entries have a `name`, `source` or `kind` merge by it; any other list replaces.
Recipes of `rayembed mine`, `synthesize`, `ablate` and `compress` extend one another in the same way.

## State facts at the source

What holds for a source in every blend may stand under `data.sources.NAME`, of a built-in source too:
`instruction`, `paraphrases`, `symmetric`, `labels`, `negatives_per_query`, `mining` and `in_batch_negatives`.
A blend then names its sources and their weights, and overrides a fact where it differs. A stage may state
`in_batch_negatives` and `negatives_per_query` for the sources that say nothing.

```yaml
data:
  sources:
    nq: {path: nq.parquet, instruction: Find the answer, negatives_per_query: 7}
    wordnet-glosses: {instruction: Find the definition of this word}
stages:
  - name: retrieval
    in_batch_negatives: true
    blend: {nq: 100, wordnet-glosses: {weight: 5, negatives_per_query: 0}}
```

## Override a setting

`--set ADDRESS=VALUE` takes a value in YAML. An address has keys, names, or numbers that count from 0. The
key of a list may be left out in front of the name of its entry:

| address | sets |
|---|---|
| `stages.retrieval.steps=20` or `stages.0.steps=20` | the steps of stage `retrieval` |
| `stages.blend.nq.weight=2` or `stages.blend.blend.nq.weight=2` | the weight of `nq` in stage `blend` |
| `stages.blend.nq=null` | takes `nq` out of the blend |
| `data.sources.nq.instruction=...` | a fact of a source, in every blend that does not override it |
| `lora=null` | trains all weights |

Relative paths start at the workspace: the folder or URI in `RAYEMBED_HOME`, or the current one. [Stop and
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
        return "name → text" if field["additionalProperties"] == {"type": "string"} else "name → settings"
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
