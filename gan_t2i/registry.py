"""The one registry: (kind, name) -> class with a typed `Config`. Training, sampling and `info` all build through it.

A class registers itself::

    @register("generator", "style")
    class StyleGenerator(nn.Module):
        class Config(StrictConfig): ...
        def __init__(self, config: Config, *, resolution: int, text_width: int, max_tokens: int): ...

Its settings (`params`) come from the user's config and are stored in snapshots. Its `interface` (resolution, text width), which data and text
encoder dictate, is passed by the caller and may not overlap the settings.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gan_t2i.core.config import StrictConfig, nearest
from gan_t2i.core.errors import UsageError

_classes: dict[tuple[str, str], type[Any]] = {}
Class = TypeVar("Class", bound=type[Any])


class Spec(StrictConfig):
    """A registered name and its settings, as a config holds them."""

    name: str
    params: dict[str, Any] = {}


def register(kind: str, name: str) -> Callable[[Class], Class]:
    """Return a class decorator that registers a class with a nested `Config` under (kind, name); a duplicate raises ValueError."""

    def enter(cls: Class) -> Class:
        if (kind, name) in _classes:
            raise ValueError(f"{kind} {name!r} is registered twice: {_classes[kind, name].__qualname__} and {cls.__qualname__}")
        _classes[kind, name] = cls
        return cls

    return enter


def names(kind: str) -> list[str]:
    """Return the registered names of a kind, sorted."""
    return sorted(name for entry_kind, name in _classes if entry_kind == kind)


def lookup(kind: str, name: str) -> type[Any]:
    """Return the class under (kind, name); raises `UsageError` with the nearest name if there is none."""
    if (kind, name) not in _classes:
        raise UsageError(f"unknown {kind} {name!r}; {nearest(name, names(kind))}")
    return _classes[kind, name]


def config_for(kind: str, name: str, params: Mapping[str, Any], *, where: str | None = None) -> StrictConfig:
    """Validate `params` by the class's own `Config`; raises `UsageError` with the dotted path below `where`, the kind's params by
    default, and with the other names where this class has no settings."""
    settings, where = lookup(kind, name).Config, where or f"{kind}.params"
    if params and not settings.model_fields:
        others = ", ".join(other for other in names(kind) if other != name)
        raise UsageError(f"unknown config key {where}.{next(iter(params))}: {kind} {name!r} has no settings; there are also: {others}")
    config: StrictConfig = settings.parse(params, where=where)
    return config


def build(kind: str, name: str, params: Mapping[str, Any], **interface: Any) -> Any:
    """Build the class under (kind, name) from its settings and its interface; raises `UsageError` if a setting is wrong."""
    config = config_for(kind, name, params)
    overlap = sorted(set(interface) & set(type(config).model_fields))
    if overlap:
        raise ValueError(f"{kind} {name!r}: {', '.join(overlap)} is set by the caller and may not be a config field too")
    return lookup(kind, name)(config, **interface)
