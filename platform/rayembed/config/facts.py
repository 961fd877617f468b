"""Facts of a source that hold in every blend, and in those that are derived from it; blends as mappings.

    data: {sources: {nq: {path: nq.parquet, instruction: Find the answer, negatives_per_query: 7}}}
    stages: [{name: first, in_batch_negatives: true, blend: {nq: 100}}]

becomes `blend: [{source: nq, weight: 100, instruction: Find the answer, negatives_per_query: 7,
in_batch_negatives: true}]`. An entry of a blend goes before its source, and the source before the stage.
"""

from collections.abc import Mapping
from typing import Any

from rayembed.common.errors import ConfigError
from rayembed.config.blend import SourceConfig
from rayembed.config.layering import named_entry

FACTS = tuple(key for key in SourceConfig.model_fields if key not in ("source", "weight", "cap", "epochs"))
STAGE_FACTS = ("in_batch_negatives", "negatives_per_query")
_MINING_FACTS = ("instruction", "symmetric")

Facts = Mapping[str, Mapping[str, Any]]


def list_blends(raw: dict[str, Any]) -> dict[str, Any]:
    """The recipe with every blend as a list.

    Raises:
        ConfigError: a source without a weight is written as null, which would take it out.
    """
    if not isinstance(raw.get("stages"), list):
        return raw
    return raw | {"stages": [_list_blend(stage) for stage in raw["stages"]]}


def _list_blend(stage: Any) -> Any:
    if not isinstance(stage, dict) or not isinstance(stage.get("blend"), dict):
        return stage
    if empty := [name for name, value in stage["blend"].items() if value is None]:
        raise ConfigError(
            f"stage {stage.get('name')}: source {empty[0]} of the blend is null and nothing that "
            "it extends has it; write a weight, or {} for a share by size"
        )
    entries = [named_entry("source", str(name), value) for name, value in stage["blend"].items()]
    return stage | {"blend": entries}


def facts_of(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Source -> the facts that stand at it."""
    data = raw.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(sources, dict):
        return {}
    facts = {
        str(name): {key: value for key, value in source.items() if key in FACTS}
        for name, source in sources.items()
        if isinstance(source, dict)
    }
    origins = {name: str(sources[name].get("derived_from")) for name in facts if name in sources}
    return {name: facts.get(origins.get(name, ""), {}) | own for name, own in facts.items()}


def spread_facts(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the facts of sources and stages in the entries of blends, and nowhere else.

    A source that has facts alone is a built-in one; its declaration goes. The `sources` of a mining recipe
    take their instruction and `symmetric` from it too.
    """
    facts, spread = facts_of(raw), dict(raw)
    if facts:
        sources = {
            name: {key: value for key, value in source.items() if key not in FACTS}
            if isinstance(source, dict)
            else source
            for name, source in raw["data"]["sources"].items()
            if source is not None and not (facts.get(name) and source.keys() <= set(FACTS))
        }
        spread["data"] = raw["data"] | {"sources": sources}
    if isinstance(raw.get("stages"), list):
        spread["stages"] = [_spread_stage(stage, facts) for stage in raw["stages"]]
    if isinstance(raw.get("sources"), list):
        spread["sources"] = [_with_facts(entry, facts, {}, _MINING_FACTS) for entry in raw["sources"]]
    return spread


def _spread_stage(stage: Any, facts: Facts) -> Any:
    if not isinstance(stage, dict) or not isinstance(stage.get("blend"), list):
        return stage
    own = {key: stage[key] for key in STAGE_FACTS if key in stage}
    rest = {key: value for key, value in stage.items() if key not in own}
    return rest | {"blend": [_with_facts(entry, facts, own, FACTS) for entry in stage["blend"]]}


def _with_facts(entry: Any, facts: Facts, defaults: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get("source"), str):
        return entry
    known = {key: value for key, value in facts.get(entry["source"], {}).items() if key in keys}
    return {**defaults, **known, **entry}
