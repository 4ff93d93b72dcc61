"""Strict configuration: typed models, one default per value, and precedence default < YAML < ``--set a.b=c``.

Every configuration class derives from `StrictConfig`, stands beside the class it configures, and refuses unknown keys with the dotted
path and the nearest name.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
import yaml

from gan_t2i.core.errors import UsageError

Count = Annotated[int, pydantic.Field(ge=1)]
"""A setting that must be at least one."""
Positive = Annotated[float, pydantic.Field(gt=0)]
NonNegative = Annotated[float, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(gt=0, le=1)]
"""A fraction above zero."""


class StrictConfig(pydantic.BaseModel):
    """A frozen, typed group of settings. Strings are coerced by a field's type (PyYAML reads ``2e-4`` as a string)."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Refuse true and false where numbers are wanted: pydantic takes them for 1 and 0."""
        if isinstance(value, bool) and "bool" not in str(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"{str(value).lower()} is not a value of this setting")
        return value

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """Validate `values`; raises `UsageError` with the dotted path below `where`, the value and what is allowed."""
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as error:
            raise UsageError(explain(error, cls, where)) from error


def explain(error: pydantic.ValidationError, cls: type[pydantic.BaseModel], where: str = "") -> str:
    """Return one sentence for the first fault that pydantic found in `cls`."""
    fault = error.errors()[0]
    path = [str(part) for part in fault["loc"]]
    dotted = ".".join([where, *path] if where else path)
    if fault["type"] == "extra_forbidden":
        known = _fields_at(cls, path[:-1])
        return f"unknown config key {dotted}; {nearest(path[-1], known)}"
    if fault["type"] == "missing":
        return f"config key {dotted} is required"
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, UsageError):  # from a nested configuration, with its own path
        return str(cause)
    message = re.sub(r"^(Value error|Assertion failed), ", "", fault["msg"])
    if fault["type"] == "value_error":
        return f"config key {dotted}: {message}" if dotted else message
    return f"config key {dotted} = {fault['input']!r}: {message[0].lower()}{message[1:]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for the unknown `name`: the closest of `known`, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"


def _fields_at(cls: type[pydantic.BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        inner = cls.model_fields[part].annotation if part in cls.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, pydantic.BaseModel)):
            return []
        cls = inner
    return list(cls.model_fields)


class _Loader(yaml.SafeLoader):
    """A loader that refuses a duplicate key, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if name != "<<" and names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises `UsageError` where the file is missing, is not YAML, or holds something else."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UsageError(f"cannot read config {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an impossible date
        raise UsageError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        raise UsageError(f"config {path} is empty: it must hold a mapping of keys to values")
    if not isinstance(values, dict):
        raise UsageError(f"config {path} must hold a mapping of keys to values, not {type(values).__name__}")
    return values


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `values` with each ``a.b=c`` of `overrides` set, c read as YAML."""
    result = _deep_copy(values)
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise UsageError(f"--set {override}: write it as key.subkey=value")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"--set {override}: {text!r} is not a YAML value") from error
        place = result
        for key in keys[:-1]:
            inner = place.setdefault(key, {})
            if not isinstance(inner, dict):
                raise UsageError(f"--set {override}: {key} holds a value, not a group of keys")
            place = inner
        place[keys[-1]] = value
    return result


def with_options(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with `options` on top; a group of keys is merged key by key."""
    result = _deep_copy(values)
    for key, value in options.items():
        group = result.setdefault(key, {}) if isinstance(value, Mapping) else None
        if group is None:
            result[key] = value
        elif isinstance(group, dict):  # for anything else, `parse` says what is wrong
            group |= value
    return result


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _deep_copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}
