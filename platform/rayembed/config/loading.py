"""One YAML recipe plus dotted overrides -> one validated configuration."""

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rayembed.common.errors import ConfigError
from rayembed.common.settings import Frozen
from rayembed.config.run import RunConfig

Recipe = TypeVar("Recipe", bound=Frozen)


RecipeSource = str | Path | Mapping[str, Any]

SHIPPED = Path(__file__).resolve().parents[1] / "recipes"


def load_config(recipe: RecipeSource, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the recipe of a training run; see `load_recipe`."""
    return load_recipe(recipe, RunConfig, overrides)


def load_recipe(recipe: RecipeSource, model: type[Recipe], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe of any kind and apply `a.b.0.c=value` overrides; values are YAML.

    Args:
        recipe: YAML file, name of a shipped recipe such as `quickstart`, or the content as a mapping.
        model: kind of recipe.
        overrides: each `key=value`.

    Raises:
        ConfigError: no such file, not YAML, an unknown or missing key, or a value of the wrong kind.
    """
    if isinstance(recipe, Mapping):
        raw, origin = copy.deepcopy(dict(recipe)), "the recipe"
    else:
        raw, origin = _read(Path(recipe)), str(recipe)
    for override in overrides:
        _apply_override(raw, override)
    return validate_recipe(raw, model, origin=origin)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file() and (SHIPPED / f"{path}.yaml").is_file():
        path = SHIPPED / f"{path}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise ConfigError(f"no recipe at {path}; give a file or the name of a shipped one: {names}")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not {type(raw).__name__}")
    return raw


def validate_config(raw: dict[str, Any], origin: str) -> RunConfig:
    """Build the configuration of a training run; see `validate_recipe`."""
    return validate_recipe(raw, RunConfig, origin)


def validate_recipe(raw: dict[str, Any], model: type[Recipe], origin: str) -> Recipe:
    """Build a configuration object, turning the first problem into one sentence.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong kind.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_first_problem(error, model)}") from error


def _apply_override(raw: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ConfigError(f"override {override!r} must have the form key.subkey=value")
    *parents, last = name.split(".")
    node: Any = raw
    try:
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if isinstance(node, list):
            node[int(last)] = yaml.safe_load(text)
        else:
            node[last] = yaml.safe_load(text)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"override {override!r} does not fit the recipe: {name!r} cannot be set there"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error


def _first_problem(error: ValidationError, model: type[Frozen]) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_nearest_key(problem['loc'], model)}"
    if problem["type"] == "missing":
        return f"missing key {where!r}; add it to the recipe"
    message = problem["msg"].removeprefix("Value error, ")
    shown = (
        ""
        if isinstance(problem["input"], dict | list) or problem["type"] == "value_error"
        else (f" (value {problem['input']!r})")
    )
    return f"{where}: {message}{shown}" if where else message


def _nearest_key(location: tuple[int | str, ...], model: type[Frozen]) -> str:
    known = _known_keys(model)
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "; remove it"


def _known_keys(model: type[Frozen]) -> list[str]:
    definitions = model.model_json_schema().get("$defs", {})
    nested = [key for definition in definitions.values() for key in definition.get("properties", {})]
    return [*model.model_fields, *nested]
