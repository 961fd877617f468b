"""The model card that goes with an exported model."""

from collections.abc import Iterable, Mapping
from typing import Any

from rayembed.contract import Contract
from rayembed.model.configuration import ModelConfig

_UNKNOWN = "not recorded"


def model_card(
    name: str,
    manifest: Mapping[str, Any],
    config: ModelConfig,
    contract: Contract,
    scores: Mapping[str, Mapping[str, Any]],
    *,
    is_plain: bool = False,
) -> str:
    """README.md of a model in Markdown.

    Args:
        name: name of the model.
        manifest: manifest of its checkpoint; its provenance gives base model, data and licences.
        config: model configuration.
        contract: contract.
        scores: task -> {"metric", "base", "bm25", "trained"}, as in a run's summary.json; may be empty.
        is_plain: whether the folder loads without this library.
    """
    provenance = manifest["provenance"]
    sections = [
        _HEADER.format(name=name),
        _facts(manifest, config, contract),
        _use(is_plain).format(name=name, instruction=next(iter(contract.instructions), "query")),
        "## Instructions\n\n" + _instructions(contract),
        "## Training data and licences\n\n" + _data(provenance),
        "## Scores\n\n" + _scores(scores),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


_HEADER = """
---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [rayembed, sentence-transformers, text-embedding]
---

# {name}
"""

_CALLS = """
queries = model.encode(["what is packed attention"], prompt_name="{instruction}")
documents = model.encode(["Texts laid end to end attend to themselves only."])
print(model.similarity(queries, documents))
```
"""

_USE_PLAIN = """
## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
"""

_USE_RAYEMBED = """
## Use

With the package `rayembed` installed:

```python
from rayembed.model.export.sentence_transformers import load_sentence_transformer

model = load_sentence_transformer("{name}")
"""

_FLAG = """
`SentenceTransformer("{name}", trust_remote_code=True)` gives the same model. The flag allows the import of
the installed package; this folder holds no code.
"""


def _use(is_plain: bool) -> str:
    return _USE_PLAIN.rstrip() + _CALLS if is_plain else _USE_RAYEMBED.rstrip() + _CALLS + _FLAG


def _facts(manifest: Mapping[str, Any], config: ModelConfig, contract: Contract) -> str:
    provenance = manifest["provenance"]
    stages = ", ".join(f"{stage['name']} ({stage['steps']} steps)" for stage in provenance.get("stages", []))
    rows = [
        ("base model", provenance.get("base_model", _UNKNOWN)),
        ("layers kept", provenance.get("base_layers") or "all"),
        ("training stages", stages or "none"),
        ("attention", config.attention),
        ("pooling", config.pooling.type),
        ("dimensions", manifest["dimensions"]),
        ("longest text", f"{contract.max_length} tokens"),
        ("similarity", contract.similarity),
        ("digest", f"`{manifest['digest']}`"),
    ]
    return _table(("", ""), rows)


def _instructions(contract: Contract) -> str:
    if not contract.instructions:
        return "The model was trained without instructions."
    rows = [
        (f"`{name}`", text or "none", "both sides" if name in contract.symmetric else "query")
        for name, text in contract.instructions.items()
    ]
    template = contract.instruction_template.replace("\n", "\\n")
    return f"Template: `{template}`\n\n" + _table(("prompt name", "instruction", "goes in front of"), rows)


def _data(provenance: Mapping[str, Any]) -> str:
    licences = provenance.get("licences", {})
    base = provenance.get("base_model", _UNKNOWN)
    rows = [(base, "base model", licences.get(base, _UNKNOWN))]
    rows += [(name, "data", licences.get(name, _UNKNOWN)) for name in provenance.get("sources", [])]
    return _table(("name", "role", "licence"), rows)


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    if not scores:
        return "No scores were recorded with this model."
    columns = ("base", "bm25", "trained")
    rows = [
        (task, score["metric"], *(_rounded(score.get(column)) for column in columns))
        for task, score in scores.items()
    ]
    return _table(("task", "metric", "base model", "BM25", "this model"), rows)


def _rounded(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
