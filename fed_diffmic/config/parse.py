"""From plain JSON values to frozen dataclasses, strictly: whoever sent them is not believed."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fed_diffmic.errors import ConfigError


def parse_dataclass(kind: type[Any], value: object, key: str) -> Any:
    """Build a (nested) frozen dataclass from plain JSON values, refusing what does not fit."""
    if not isinstance(value, Mapping):
        raise ConfigError(key, type(value).__name__, "a mapping")
    hints = _hints(typing.cast(Any, kind))
    known = {f.name for f in fields(kind)}
    for name in value:
        if name not in known:
            raise ConfigError(f"{key}.{name}", value[name], f"one of {', '.join(sorted(known))}")
    arguments = {name: _parse(hints[name], item, f"{key}.{name}") for name, item in value.items()}
    try:
        return kind(**arguments)
    except TypeError as error:
        missing = known - set(value)
        raise ConfigError(key, f"without {', '.join(sorted(missing))}", "every required key") from error


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _parse(hint: Any, value: Any, key: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return parse_dataclass(typing.cast(type, hint), value, key)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _parse(next(a for a in arguments if a is not type(None)), value, key)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(key, value, "a list")
        return origin(_parse(arguments[0], item, f"{key}[{n}]") for n, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            raise ConfigError(key, value, "a mapping of names")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(key, "(hundreds of digits)", "a number") from error
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(key, value, hint.__name__)
    return value
