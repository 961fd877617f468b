"""The base of all settings, and what differs between two of them."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

Precision = Literal["auto", "bf16", "fp16", "fp32"]
"""Number format of the weights; auto takes bf16 where the processor multiplies it natively."""

Backend = Literal["auto", "torch"]
"""What computes a model; auto: OpenVINO too, where it is installed and faster."""

Quantization = Literal["none", "int8", "fp8"]
"""Format in which the weights of a model's layers are held; none: the one they are computed in."""

DEFAULT_TOKEN_BUDGETS = {"cpu": 4096, "cuda": 16384}
"""Most tokens of a forward pass by type of device: what a CPU's caches hold, and what keeps a GPU busy."""

_ABSENT = object()


class Frozen(BaseModel):
    """Immutable settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_yaml(self) -> str:
        """All settings as YAML, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Yaml(yaml.SafeLoader):
    """YAML 1.2 has two booleans; to PyYAML, which reads 1.1, names such as `on` and `no` are booleans too.

    A key that stands twice in a mapping is refused, as YAML says; PyYAML takes the last one.
    """

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} is there twice; remove one", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


_BOOLEAN = "tag:yaml.org,2002:bool"
_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(_BOOLEAN, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read_yaml(content: str | bytes) -> Any:
    """Content of a recipe, a text or the bytes of a file; yaml.YAMLError where it is no YAML in Unicode."""
    return yaml.load(content, _Yaml)


def refuse(problems: Iterable[str]) -> None:
    """End a check of settings: ValueError with all its problems, one a line; nothing when there are none."""
    if listed := "\n".join(problems):
        raise ValueError(listed)


def differences(before: Any, now: Any, address: str = "") -> Iterator[str]:
    """What differs between two settings, as plain data: one sentence for each address.

    `{"seed": 1, "stages": [{"steps": 5}]}` and `{"seed": 2, "stages": [{"steps": 5, "loss": "x"}]}` give
    "seed was 1 and is 2" and "stages.0.loss is new". Lists of different lengths differ as a whole, and of two
    digests only the address is told.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
            yield from differences(old, new, f"{address}.{key}" if address else str(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{address}.{index}" if address else str(index))
    elif before is _ABSENT:
        yield f"{address} is new"
    elif now is _ABSENT:
        yield f"{address} is gone"
    elif before != now:
        digests = all(isinstance(value, str) and len(value) == 64 for value in (before, now))
        yield f"{address} has changed" if digests else f"{address} was {before!r} and is {now!r}"
