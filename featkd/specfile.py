"""A spec from its YAML file: overrides, paths, and what is said when it is wrong.

spec = load("poc.yaml", overrides=["cost.price_per_hour=2.5"])
"""

import copy
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from featkd.errors import InputError
from featkd.judging import SUITES
from featkd.spec import Spec


def load(path: str | Path, overrides: list[str] | None = None) -> Spec:
    """Read a spec. Paths in it become absolute, relative to the spec's folder.

    Raises InputError: one line with the field, what is wrong and what to write instead.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"spec: no file {path}; start from flows/specs/default.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"spec: {path} cannot be read as YAML: {_one_line(error)}") from None
    if not isinstance(tree, dict):
        raise InputError(f"spec: {path} is not a mapping of sections; start from flows/specs/default.yaml")
    tree = overridden(tree, overrides or [])
    _absolute_paths(tree, path.resolve().parent)
    return validate(tree)


def overridden(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of plain values with `key.of.sections=value` set. Raises InputError."""
    tree = copy.deepcopy(tree)
    for override in overrides:
        _set(tree, override)
    return tree


def validate(tree: dict[str, Any]) -> Spec:
    """A tree of plain values as a Spec; raises InputError naming the first wrong field."""
    try:
        return Spec.model_validate(tree)
    except ValidationError as error:
        raise InputError(_explain(error)) from None


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: write key=value, e.g. --set cost.price_per_hour=2.5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    *parents, last = key.split(".")
    node: Any = tree
    for name in parents:
        if isinstance(node, dict) and node.get(name) is None:
            node[name] = {}
        node = node[name] if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise InputError(f"--set {override}: {'.'.join(parents)} is not a section")
    node[last] = value


def _absolute_paths(tree: dict[str, Any], base: Path) -> None:
    def absolute(value: Any) -> Any:
        try:
            return str(base / Path(value).expanduser()) if isinstance(value, str) else value
        except RuntimeError:
            raise InputError(f"spec: {value}: there is no such user here; write the whole path") from None

    data, teacher, students, quality, guardrails = (
        tree.get(name) for name in ("data", "teacher", "students", "quality", "guardrails")
    )
    if isinstance(data, dict) and data.get("files") is not None:
        files = data["files"] if isinstance(data["files"], list) else [data["files"]]
        data["files"] = [absolute(file) for file in files]
    for model in (teacher, *(students if isinstance(students, list) else [])):
        named = model.get("model") if isinstance(model, dict) else None
        if isinstance(named, str) and not named.startswith("hub:"):
            model["model"] = absolute(named)
    if isinstance(quality, dict) and quality.get("include"):
        quality["include"] = absolute(quality["include"])
    for suite in SUITES if isinstance(guardrails, dict) else ():
        if guardrails.get(suite) is not None:
            files = guardrails[suite] if isinstance(guardrails[suite], list) else [guardrails[suite]]
            guardrails[suite] = [absolute(file) for file in files]


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "spec"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_known_keys(first['loc'])}"
    if first["type"] == "missing":
        return f"{where}: missing; {_known_keys(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ")
    shown = repr(first["input"])
    given = f" (given: {shown})" if len(shown) <= 60 and not isinstance(first["input"], dict) else ""
    return f"{where}: {_one_line(message)}{given}"


def _known_keys(location: tuple[int | str, ...]) -> str:
    node: Any = Spec
    for part in location[:-1]:
        if isinstance(part, str) and isinstance(node, type) and issubclass(node, BaseModel):
            field = node.model_fields.get(part)
            node = _section_of(field.annotation) if field else None
    if isinstance(node, type) and issubclass(node, BaseModel):
        return "the section takes " + ", ".join(node.model_fields)
    return "see `featkd validate --schema`"


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _section_of(part))), None)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
