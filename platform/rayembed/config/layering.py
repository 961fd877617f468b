"""How recipes extend one another, and how an address finds a setting by names.

A *named list* is a list of mappings with a different `name`, `source` or `kind` each, such as the stages of a
run or the sources of a blend. Its entries merge, and are addressed, by that name.

    base        stages: [{name: retrieval, steps: 20}, {name: blend, steps: 5}]
    extended by stages: [{name: blend, steps: 7}]                      changes one stage
                stages: {blend: {steps: 7}}                            the same
                stages: {retrieval: null}                              takes one out
                stages: [{name: blend}, {name: retrieval}]             turns their order round
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayembed.common.errors import ConfigError

_NAMING_KEYS = ("name", "source", "kind")


def naming_key(entries: Any) -> str | None:
    """Which key names the entries of a named list; None: it is no named list."""
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        return None
    for key in _NAMING_KEYS:
        names = [one.get(key) for one in entries]
        if all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
            return key
    return None


def merge(base: Any, over: Any) -> Any:
    """`base` changed by `over`: mappings and named lists merge, null deletes, anything else replaces."""
    if isinstance(base, dict) and isinstance(over, dict):
        merged = dict(base)
        for key, value in over.items():
            if value is None and key in merged:
                del merged[key]
            else:
                merged[key] = merge(merged.get(key), value)
        return merged
    naming = naming_key(base)
    if naming and isinstance(over, dict):
        return _merge_named(base, naming, over, order=False)
    if naming and naming_key(over) == naming:
        return _merge_named(base, naming, {one[naming]: one for one in over}, order=True)
    return over


def _merge_named(
    base: Sequence[dict[str, Any]], naming: str, changes: Mapping[str, Any], *, order: bool
) -> list[Any]:
    """Entries change in place and new ones follow; with `order`, those that change take its order.

    [a, b, c] changed by [c, d, a] is [c, b, a, d]: c and a share the two places that they had.
    """
    entries = {one[naming]: one for one in base}
    moved = iter([name for name in changes if name in entries])
    names = [next(moved) if order and name in changes else name for name in entries]
    names += [name for name in changes if name not in entries]
    return [
        merge(entries.get(name), named_entry(naming, name, changes[name]))
        if name in changes
        else entries[name]
        for name in names
        if changes.get(name, {}) is not None
    ]


def named_entry(naming: str, name: str, value: Any) -> Any:
    """An entry of a named list from what is said of its name; a number is the weight of a source."""
    if naming == "source" and isinstance(value, int | float) and not isinstance(value, bool):
        return {naming: name, "weight": value}
    return {naming: name, **value} if isinstance(value, dict) else value


def assign(
    raw: dict[str, Any], address: str, value: Any, is_setting: Callable[[Sequence[str], str], bool]
) -> None:
    """Set what an address names.

    A part of an address is a key of a mapping, a name in a named list, or a number that counts from 0.
    The key of a list may be left out where the next part names one of its entries and is no setting itself:

        stages.0.steps, stages.retrieval.steps              the same setting
        stages.blend.blend.nq.weight, stages.blend.nq.weight    stage `blend`, source `nq` of its blend
        stages.blend.nq                                     null takes it out, a number is its weight

    Args:
        raw: the recipe; changed.
        address: parts separated by dots; names may have dots as well.
        value: what is set.
        is_setting: whether a key is a setting of the model at some path.

    Raises:
        ConfigError: a name is unknown, or is that of several entries; the message lists the names.
    """
    node, parts, path = raw, address.split("."), list[str]()
    while True:
        if isinstance(node, dict):
            key: Any = _longest(parts, node) or parts[0]
            if key not in node and not is_setting(path, key) and (inner := _list_with(node, parts, address)):
                key, parts = inner, [inner, *parts]
            if key not in node and len(parts) > 1 and not is_setting(path, key):
                _refuse_unknown(node, key, address)
        elif isinstance(node, list):
            key = _entry(node, parts, address)
        else:
            raise ConfigError(f"{address!r} cannot be set there: {'.'.join(path)} has no settings in it")
        name = key if isinstance(key, str) else (_longest(parts, names_in(node)) or parts[0])
        parts = parts[name.count(".") + 1 :]
        path.append(name)
        if not parts:
            break
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    _put(node, key, value)


def _put(node: Any, key: Any, value: Any) -> None:
    """Set a key of a mapping or an entry of a list; null takes an entry out, a short form is spelt out."""
    if isinstance(node, list) and value is None:
        del node[key]
    elif isinstance(node, list) and (naming := naming_key(node)):
        entry = named_entry(naming, node[key][naming], value)
        node[key] = merge(node[key], entry) if not isinstance(value, dict) else entry
    else:
        node[key] = value


def names_in(entries: Any) -> list[str]:
    """Names of the entries of a named list; none for anything else."""
    naming = naming_key(entries)
    return [one[naming] for one in entries] if naming else []


def _longest(parts: Sequence[str], names: Any) -> str | None:
    """The longest beginning of an address that is one of the names, which may have dots in them."""
    starts = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((start for start in starts if start in names), None)


def _list_with(node: Mapping[str, Any], parts: Sequence[str], address: str) -> str | None:
    """Key of the one named list that has an entry of the next name."""
    found = [key for key, inner in node.items() if _longest(parts, names_in(inner))]
    if len(found) > 1:
        raise ConfigError(
            f"{address!r} is ambiguous: {parts[0]!r} is an entry of {' and of '.join(found)}; write the "
            "key of the list in front of it"
        )
    return found[0] if found else None


def _entry(entries: Sequence[Any], parts: Sequence[str], address: str) -> int:
    names = names_in(entries)
    if name := _longest(parts, names):
        return names.index(name)
    if parts[0].isdigit() and int(parts[0]) < len(entries):
        return int(parts[0])
    known = f"it has {', '.join(names)}" if names else f"its entries are 0 to {len(entries) - 1}"
    raise ConfigError(f"{address!r} cannot be set there: the list has no entry {parts[0]!r}; {known}")


def _refuse_unknown(node: Mapping[str, Any], key: str, address: str) -> None:
    names = [name for inner in node.values() for name in names_in(inner)]
    if names:
        raise ConfigError(
            f"{address!r} cannot be set there: {key!r} is neither a setting nor an entry; the entries are "
            f"{', '.join(names)}"
        )
