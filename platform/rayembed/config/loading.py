"""A recipe, what it extends and overrides by address -> one validated configuration."""

import copy
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rayembed.common.errors import ConfigError, all_mistakes
from rayembed.common.paths import fetch, resolve
from rayembed.common.settings import Frozen, read_yaml
from rayembed.config.blend import SourceConfig
from rayembed.config.facts import facts_of, list_blends, spread_facts
from rayembed.config.layering import assign, merge, names_in
from rayembed.config.run import RunConfig

logger = logging.getLogger(__name__)

Recipe = TypeVar("Recipe", bound=Frozen)


RecipeSource = str | Path | Mapping[str, Any]

SHIPPED = Path(__file__).resolve().parents[1] / "recipes"


def load_config(recipe: RecipeSource, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the recipe of a training run; see `load_recipe`."""
    return load_recipe(recipe, RunConfig, overrides)


def load_recipe(
    recipe: RecipeSource, model: type[Recipe], overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Read a recipe of any kind and apply overrides.

    Args:
        recipe: YAML file, name of a shipped recipe such as `quickstart`, or the content as a mapping.
        model: kind of recipe.
        overrides: each `address=value` with the value in YAML, or address -> value; see `layering.assign`.

    Raises:
        ConfigError: no such file, not YAML, recipes that extend each other in a circle, or all
            mistakes in the settings, each with its address.
    """
    if isinstance(recipe, Mapping):
        raw, origin = _extended(copy.deepcopy(dict(recipe)), model, Path(), ()), "the recipe"
    else:
        raw, origin = _read(Path(recipe), model), str(recipe)

    def is_setting(path: Sequence[str], key: str) -> bool:
        return any(key in found.model_fields for found in _models_at(model, path))

    changes = overrides.items() if isinstance(overrides, Mapping) else map(_parsed, overrides)
    for address, value in changes:
        assign(raw, address, value, is_setting)
    return validate_recipe(raw, model, origin=origin)


def _read(path: Path, model: type[Frozen], extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Content of a recipe file, merged over what it extends."""
    if not path.is_file() and (SHIPPED / f"{path}.yaml").is_file():
        path = SHIPPED / f"{path}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        cause = f", which {extending[-1]} extends" if extending else ""
        raise ConfigError(f"no recipe at {path}{cause}; give a file or the name of a shipped one: {names}")
    path = path.resolve()
    if path in extending:
        chain = " -> ".join(file.name for file in (*extending, path))
        raise ConfigError(f"recipes extend each other in a circle: {chain}; remove one of their `extends`")
    try:
        raw = read_yaml(path.read_bytes())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not {type(raw).__name__}")
    return _extended(raw, model, path.parent, (*extending, path))


def _extended(
    raw: dict[str, Any], model: type[Frozen], folder: Path, extending: tuple[Path, ...]
) -> dict[str, Any]:
    """The recipe over those that it extends, from first to last."""
    names = raw.pop("extends", None) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"extends is {names!r}; give the name of a recipe or a list of names")
    base: dict[str, Any] = {}
    for name in names:
        base = merge(base, _read(_nearest(name, folder, extending[-1:]), model, extending))
    merged = merge(base, raw)
    for key, field in model.model_fields.items():
        # `lora: null` turns something off that is on by default, so it must not merely delete the key.
        if (
            key in raw
            and raw[key] is None
            and field.default is not None
            and NoneType in get_args(field.annotation)
        ):
            merged[key] = None
    return list_blends(merged)


def _nearest(name: str, folder: Path, by: tuple[Path, ...]) -> Path:
    """File of a recipe that one in `folder` extends, not itself: there, else a shipped one."""
    files = [place / f"{name}{end}" for place in (folder, SHIPPED) for end in ("", ".yaml")]
    return next((file for file in files if file.is_file() and file not in by), folder / name)


def _parsed(override: str) -> tuple[str, Any]:
    address, separator, text = override.partition("=")
    if not separator or not address:
        raise ConfigError(f"override {override!r} must have the form key.subkey=value")
    try:
        return address, read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error


def validate_config(raw: dict[str, Any], origin: str) -> RunConfig:
    """Build the configuration of a training run; see `validate_recipe`."""
    return validate_recipe(raw, RunConfig, origin)


def validate_recipe(raw: dict[str, Any], model: type[Recipe], origin: str) -> Recipe:
    """Build a configuration object from settings that extend nothing.

    Raises:
        ConfigError: all mistakes, each with its address.
    """
    raw = list_blends(raw)
    if model is RunConfig:
        raw = with_declared(raw)
    complete = spread_facts(raw)
    mistakes = list(_wrong_facts(raw))
    try:
        found = model.model_validate(complete)
    except ValidationError as error:
        mistakes += _problems(error, model, complete, raw)
    if mistakes:
        raise ConfigError(all_mistakes(origin, mistakes))
    return found


def with_declared(raw: dict[str, Any]) -> dict[str, Any]:
    """A recipe with what the folder of its base model declares, where the recipe does not say otherwise.

    For a folder of sentence-transformers that pools by mean, `contract: {max_length: 64}` becomes
    `contract: {max_length: 64, pool_instruction: true, ...}, model: {pooling: {type: mean}, ...}`.
    """
    base = raw.get("base_model")
    if not isinstance(base, str) or not (folder := fetch(resolve(base), weights=False)).is_dir():
        return raw
    from rayembed.model.checkpoint import checkpoint_settings  # imports transformers
    from rayembed.model.export.modules_json import is_modules_folder, read_modules

    if (folder / "rayembed.json").is_file():
        found = checkpoint_settings(folder)
    elif is_modules_folder(folder):
        found = read_modules(folder).settings
    else:
        return raw
    raw = dict(raw)
    for part, settings in found.items():
        own = raw.get(part) or {}
        if isinstance(own, Mapping):  # other values are mistakes, which validation names
            taken = {key: value for key, value in settings.items() if key not in own}
            raw[part] = taken | dict(own)
            if taken:
                logger.info("%s of base model %s: %s", part, folder, taken)
    return raw


def _wrong_facts(raw: Mapping[str, Any]) -> Iterator[str]:
    """Facts of sources with a value of the wrong kind, whether or not a blend uses them."""
    for name, facts in facts_of(raw).items():
        try:
            SourceConfig.model_validate({"source": name, "in_batch_negatives": False} | facts)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                if problem["loc"]:  # what facts exclude is only known of a whole entry
                    where = ".".join(map(str, ("data.sources", name, *problem["loc"])))
                    yield from _sentences(problem, where, SourceConfig)


def _problems(
    error: ValidationError, model: type[Frozen], complete: Mapping[str, Any], raw: Mapping[str, Any]
) -> Iterator[str]:
    facts = facts_of(raw)
    for problem in error.errors(include_url=False):
        if problem["type"] == "too_short" and problem["input"]:
            continue  # its entries have mistakes of their own
        path: list[str] = []
        node: Any = complete
        for part in problem["loc"]:
            if isinstance(node, list) and isinstance(part, int):
                names = names_in(node)
                path.append(names[part] if names else str(part))
                node = node[part] if part < len(node) else None
            elif (
                isinstance(node, Mapping)
                and part not in node
                and part in (node.get("type"), node.get("kind"))
            ):
                continue  # pydantic names the variant of a loss or pooling head, which is no key
            else:
                path.append(str(part))
                node = node.get(part) if isinstance(node, Mapping) else None
        is_fact = len(path) > 4 and path[2] == "blend" and path[4] in facts.get(path[3], {})
        if is_fact and path[4] not in _written(raw, problem["loc"][:4]):
            continue  # told at the source already
        yield from _sentences(problem, ".".join(path), *_models_at(model, path[:-1]))


def _written(raw: Any, location: Sequence[Any]) -> Mapping[str, Any]:
    for part in location:
        raw = raw[part]
    return raw


def _sentences(problem: Any, where: str, *models: type[BaseModel]) -> Iterator[str]:
    """One problem of pydantic in words; a check of ours may tell several, one a line."""
    if problem["type"] == "extra_forbidden":
        known = sorted({key for found in models for key in found.model_fields})
        nearest = difflib.get_close_matches(where.rsplit(".", 1)[-1], known, n=1)
        yield f"unknown key {where!r}; " + (f"did you mean {nearest[0]!r}?" if nearest else "remove it")
    elif problem["type"] == "missing":
        yield f"missing key {where!r}; add it"
    elif problem["type"] == "value_error":
        for line in problem["msg"].removeprefix("Value error, ").splitlines():
            yield f"{where}: {_without_address(line, where)}" if where else line
    else:
        given = problem["input"]
        shown = "" if isinstance(given, dict | list) else f" (value {given!r})"
        yield f"{where}: {problem['msg']}{shown}"


def _without_address(line: str, where: str) -> str:
    """A check's sentence without the stage and source that the address names.

    "stage blend, source nq: mining ..." at `stages.blend` is "source nq: mining ...".
    """
    names = where.split(".")
    subject, colon, rest = line.partition(": ")
    parts = subject.split(", ")
    if not colon or any(part.split(" ")[0] not in ("stage", "source") for part in parts):
        return line
    kept = [part for part in parts if part.split(" ")[1] not in names]
    return f"{', '.join(kept)}: {rest}" if kept else rest


def _models_at(model: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    """Settings that may stand at a path; its indices, names and variants are no settings and are skipped."""
    found = [model]
    for part in path:
        fields = [one.model_fields[part] for one in found if part in one.model_fields]
        if fields:
            found = [inner for field in fields for inner in _models_in((field.annotation, *field.metadata))]
    return found


def _models_in(annotations: Sequence[Any]) -> Iterator[type[BaseModel]]:
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        else:
            yield from _models_in(get_args(annotation))
