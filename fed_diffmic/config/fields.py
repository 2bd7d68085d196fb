"""How a configuration field is declared: meaning, unit and range beside its name and type.

The same declaration drives the checks, the messages and the reference (:mod:`fed_diffmic.config.reference`).
"""

from __future__ import annotations

import math
import typing
from dataclasses import MISSING, Field, asdict, field, fields, is_dataclass
from typing import Any

from fed_diffmic.errors import ConfigError


def option(
    default: Any = MISSING,
    doc: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[str, ...] | None = None,
    path: bool = False,
    exclusive: bool = False,
    sparse: bool = False,
    factory: Any = MISSING,
) -> Any:
    """Declare one configuration field with its documentation and what it may hold.

    Args:
        default: value when nothing is said.
        doc: meaning, unit and source.
        ge, gt, le, lt: bounds of a number (of each element, for a list).
        choices: the strings allowed (for each element, for a list).
        path: a file or folder; ``~`` is expanded and it is made absolute when read.
        exclusive: of an owner's option: refused, rather than passed over, where another of its group is chosen.
        sparse: left out of what is written where it has its default: what was written before it existed stays the same.
        factory: for mutable defaults.
    """
    metadata = {"doc": doc, "ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices, "path": path}
    metadata |= {"exclusive": exclusive, "sparse": sparse}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


_WORDS = {
    "int": ("a whole number", "whole numbers"),
    "float": ("a number", "numbers"),
    "bool": ("true or false", "true or false"),
    "str": ("text (not empty)", "texts (not empty)"),
}


def allowed_text(f: Field[Any]) -> str:
    """What a field may hold, in words, for messages and documentation."""
    m = f.metadata
    if m.get("words"):
        return str(m["words"])
    kind = type_text(f)
    null = " or null" if kind.endswith("| None") else ""
    kind = kind.removesuffix("| None").strip()
    many = kind.startswith("list[")
    if m.get("choices"):
        one_of = ", ".join(m["choices"])
        return f"a list of any of {one_of}{null}" if many else one_of + null
    if kind.startswith("dict["):
        return f"a mapping of names to values{null}"
    if m.get("path"):
        return f"a path{null}"
    words = _WORDS[kind.removeprefix("list[").removesuffix("]")][many]
    bounds = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    limits = " and ".join(f"{sign} {_plain(m[key])}" for key, sign in bounds if m.get(key) is not None)
    text = f"{words} {limits}" if limits else words
    return f"a list of {text}{null}" if many else text + null


def type_text(f: Field[Any]) -> str:
    """A field's type as it is written, whether or not its module postpones annotations."""
    return f.type.__name__ if isinstance(f.type, type) and not typing.get_args(f.type) else str(f.type)


def _plain(number: float) -> str:
    """``number`` without an exponent where it is whole."""
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def check_value(f: Field[Any], value: object, key: str) -> None:
    """Raise :class:`ConfigError` naming ``key`` if ``value`` is outside what ``f`` declares."""
    m = f.metadata
    items = value if isinstance(value, (list, tuple)) else [value]
    for item in items:
        if item is None:
            continue
        if m.get("choices") and item not in m["choices"]:
            raise ConfigError(key, value, allowed_text(f))
        if m.get("pattern") and not (isinstance(item, str) and m["pattern"].fullmatch(item)):
            raise ConfigError(key, str(item)[:100], allowed_text(f))
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            outside = (
                not _finite(item)
                or (m.get("ge") is not None and item < m["ge"])
                or (m.get("gt") is not None and item <= m["gt"])
                or (m.get("le") is not None and item > m["le"])
                or (m.get("lt") is not None and item >= m["lt"])
            )
            if outside:
                raise ConfigError(key, value, allowed_text(f))


def _finite(number: float) -> bool:
    """Whether it is a number that a float can hold: a whole number of 400 digits is none."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def default_of(f: Field[Any]) -> Any:
    """What a field holds where nothing is said."""
    return f.default_factory() if f.default_factory is not MISSING else f.default


def as_written(config: Any) -> dict[str, Any]:
    """A configuration as plain values, for a file or a digest."""
    values: dict[str, Any] = asdict(config)
    for f in fields(config):
        inner = getattr(config, f.name)
        if f.metadata.get("sparse") and inner == default_of(f):
            del values[f.name]
        elif is_dataclass(inner):
            values[f.name] = as_written(inner)
    return values


class Checked:
    """Mixin: ranges hold for every object that exists, however it was built."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if type(value) is not type(f.default) or value != f.default:  # a default is in its own range
                check_value(f, value, f.name)
