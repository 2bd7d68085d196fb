"""Between text and typed values: YAML files and ``key=value`` read by what each field declares.

YAML guesses types from how a value looks (``no`` is false, ``007`` is seven, ``1e-3`` is text), which
silently renames a class called ``no`` or a folder called ``007``. Here a file is read as text and each
value is then understood as the type that its field declares, so that a file and a ``key=value`` on
the command line mean the same, and every refusal names the full key.
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from fed_diffmic.config.fields import allowed_text, as_written, check_value
from fed_diffmic.errors import ConfigError, UsageError

Tree = dict[str, Any]
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?\.?(inf|nan)", re.IGNORECASE)
_INTERPOLATION = "plain values; references such as ${...} are not resolved here"


class Scalar(str):
    """A value as it was written; ``plain`` unless it stood in quotation marks."""

    plain: bool = True

    @classmethod
    def of(cls, text: str, plain: bool = True) -> Scalar:
        """``text`` with the way it was written."""
        scalar = cls(text)
        scalar.plain = plain
        return scalar

    @property
    def null(self) -> bool:
        """Whether this is YAML's word for nothing."""
        return self.plain and self in _NULL


class _TextLoader(yaml.BaseLoader):
    """Builds mappings, lists and :class:`Scalar` only; a key given twice is an error."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Scalar:
        return Scalar.of(str(node.value), plain=node.style is None)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                problem = (
                    f"{key.value!r} is given twice" if isinstance(key, yaml.ScalarNode) else "a key must be a name"
                )
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=True)


def parse_text(text: str, source: str) -> Any:
    """Read YAML into mappings, lists and :class:`Scalar` values.

    Args:
        text: YAML (and so JSON).
        source: what to call it in a message.

    Raises:
        UsageError: not YAML, or a key given twice; names the line.
    """
    try:
        return yaml.load(text, Loader=_TextLoader)  # noqa: S506 - builds text, lists and mappings only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(
            f"{source}{where}: {getattr(error, 'problem', None) or error}",
            "Correct the file; it is YAML: `key: value`.",
        ) from error
    except RecursionError as error:
        raise UsageError(f"{source} is nested too deeply", "Groups and their keys are all that it may hold.") from error


def typed(config_type: type, tree: object, prefix: str = "", root: type | None = None) -> Tree:
    """Understand a tree of :class:`Scalar` values by the fields of a (nested) dataclass.

    Args:
        config_type: the dataclass that declares names, types and ranges.
        tree: mapping of what was given; keys may be missing.
        prefix: dotted key of this mapping, with its last dot.
        root: the dataclass of the whole configuration, where the nearest key is looked for; none: this one.

    Returns:
        The same tree with values of the declared types, each within its range.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range; names the full key.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(prefix.removesuffix("."), _shown(tree), "a mapping of " + ", ".join(_names(config_type)))
    root = root or config_type
    hints = typing.get_type_hints(config_type)
    declared = {f.name: f for f in fields(config_type)}
    result: Tree = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in declared:
            raise UnknownKeyError(config_type, prefix, str(name), value, root)
        if is_dataclass(hints[name]):
            result[name] = typed(typing.cast(type, hints[name]), value, f"{key}.", root)
            continue
        f = declared[name]
        understood = _value(hints[name], value, key, allowed_text(f))
        check_value(f, understood, key)
        if f.metadata.get("path") and understood is not None:
            understood = str(Path(understood).expanduser().absolute())
        result[name] = understood
    return result


class UnknownKeyError(ConfigError):
    """A key that does not exist; names the keys that do, and the nearest of all."""

    def __init__(self, config_type: type, prefix: str, name: str, value: object, root: type) -> None:
        key = f"{prefix}{name}"
        near = nearest_keys(key, root)
        group = prefix.split(".")[0]
        known = ", ".join(_names(config_type))
        super().__init__(
            key,
            _shown(value),
            known,
            (f"Did you mean {' or '.join(near)}? " if near else "")
            + f"`fed-diffmic options{' ' + group if group else ''}` explains every key.",
        )
        owner = prefix.removesuffix(".") or "the configuration"
        self.cause = f"{key}={_shown(value)}: there is no key {key}; {owner} has {known}"


def all_keys(config_type: type, prefix: str = "") -> list[str]:
    """Every dotted key below a dataclass, in the order of declaration."""
    hints = typing.get_type_hints(config_type)
    keys: list[str] = []
    for f in fields(config_type):
        inner = hints[f.name]
        nested = isinstance(inner, type) and is_dataclass(inner)
        keys += all_keys(inner, f"{prefix}{f.name}.") if nested else [f"{prefix}{f.name}"]
    return keys


def nearest_keys(key: str, root: type) -> list[str]:
    """Up to three keys of the configuration ``root`` that ``key`` may have meant, best first."""
    last = key.rsplit(".", 1)[-1]

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        return max(whole, difflib.SequenceMatcher(None, last, candidate.rsplit(".", 1)[-1]).ratio() - 0.05)

    keys = all_keys(root)
    groups = dict.fromkeys(k.split(".")[0] for k in keys if "." in k)
    ranked = sorted(((likeness(c), c) for c in [*groups, *keys]), key=lambda pair: -pair[0])
    return [candidate for score, candidate in ranked[:4] if score > max(0.6, ranked[0][0] - 0.1)]


def to_yaml(config: Any) -> str:
    """A resolved configuration as YAML that :func:`parse_text` and :func:`typed` read back."""
    return yaml.safe_dump(as_written(config), sort_keys=False, allow_unicode=True)


def _names(config_type: type) -> list[str]:
    return [f.name for f in fields(config_type)]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(map(str, value)) + "}"
    return str(value) if not isinstance(value, list) else "[" + ", ".join(map(_shown, value)) + "]"


def _value(hint: Any, value: Any, key: str, allowed: str) -> Any:
    """One value of a declared type; ``allowed`` is what a message says about it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, Scalar) and value.null):
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, key, allowed)
    if origin is list:
        return [
            _value(arguments[0], item, f"{key}[{n}]", allowed) for n, item in enumerate(_items(value, key, allowed))
        ]
    if origin is dict:
        if isinstance(value, Scalar) and value.plain and value.startswith("{"):
            value = parse_text(value, key)
        if not isinstance(value, Mapping):
            raise ConfigError(key, _shown(value), allowed)
        return {str(name): _guess(item, f"{key}.{name}") for name, item in value.items()}
    if not isinstance(value, Scalar):
        raise ConfigError(key, _shown(value), allowed)
    return _scalar(hint, value, key, allowed)


def _items(value: object, key: str, allowed: str) -> list[Any]:
    """The items of ``[a, b]``, or of ``a,b`` as typed on a command line."""
    if isinstance(value, Scalar) and value.plain and value.startswith("["):
        value = parse_text(value, key)
    elif isinstance(value, Scalar) and value and not value.null:
        value = [Scalar.of(part.strip()) for part in value.split(",")]
    if not isinstance(value, list):
        raise ConfigError(key, _shown(value), allowed)
    return value


def _scalar(hint: type, value: Scalar, key: str, allowed: str) -> Any:
    if "${" in value:
        raise ConfigError(key, value, _INTERPOLATION)
    if hint is str:
        if not value or not _is_unicode(value):
            raise ConfigError(key, ascii(str(value)), allowed)
        return str(value)
    text = value.strip()
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if hint is int and _WHOLE.fullmatch(text):
        return int(text)
    if hint is float and _NUMBER.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    raise ConfigError(key, value, allowed)


def _guess(value: Any, key: str) -> Any:
    """A value of an undeclared type (a Flower strategy's keyword arguments, a range), as YAML would read it."""
    if isinstance(value, Scalar) and value.plain and value.startswith("["):  # as typed on a command line
        value = parse_text(value, key)
    if isinstance(value, list):
        return [_guess(item, f"{key}[{n}]") for n, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(name): _guess(item, f"{key}.{name}") for name, item in value.items()}
    if not isinstance(value, Scalar) or not value.plain:
        return None if value is None else str(value)
    if value.null:
        return None
    for kind in (bool, int, float):
        try:
            found = _scalar(kind, value, key, "")
        except ConfigError:
            continue
        if isinstance(found, float) and not math.isfinite(found):
            raise ConfigError(key, value, "a finite number")
        return found
    return _scalar(str, value, key, "text")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; an empty mapping has none."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= flattened(item, f"{prefix}.{name}" if prefix else name)
    return found
