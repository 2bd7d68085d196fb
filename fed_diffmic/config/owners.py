"""Whose an option is: the registry of federated algorithms, data sets and partitioners.

Each of them is one file that holds its ``Options`` beside its code and registers both under the file's name. Folders
are named here as text and their files imported when a name is asked for, as those of an installed package are
(:mod:`fed_diffmic.config.plugins`): the configuration stands below the code whose options it reads.

An option that belongs to somebody is set as ``GROUP.OPTION``. Where it is kept is one of two places. The *flat* ones
(:func:`owned`) are fields of the group's dataclass, whoever is chosen: signed specifications and stored runs hold all
of them, so this list neither grows nor shrinks. Everything else, of a new file here or of a package from outside, is in
the mapping ``GROUP.options``, for the chosen one alone: to add one changes nobody else's specification.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from fed_diffmic.config.fields import Checked, allowed_text, default_of, type_text
from fed_diffmic.config.parse import parse_dataclass
from fed_diffmic.errors import ConfigError

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RULES = ("ge", "gt", "le", "lt", "choices", "path", "exclusive")


@dataclass(frozen=True)
class Kind:
    """A group of the configuration whose choices are code.

    Attributes:
        group: of the configuration, and Hydra's.
        package: folder of the built-in ones, one file each.
        entry_points: group of entry points by which an installed package offers others.
        what: what one of them is, in words.
    """

    group: str
    package: str
    entry_points: str
    what: str


ALGORITHMS = Kind("strategy", "fed_diffmic.algorithms", "fed_diffmic.algorithms", "federated algorithm")
DATASETS = Kind("dataset", "fed_diffmic.data.datasets", "fed_diffmic.datasets", "data set")
PARTITIONERS = Kind("partition", "simulations.partitioners", "fed_diffmic.partitioners", "partitioner")
KINDS = {kind.group: kind for kind in (ALGORITHMS, DATASETS, PARTITIONERS)}


@dataclass(frozen=True)
class Own(Checked):
    """Base of the ``Options`` of an algorithm, a data set or a partitioner: frozen, ranges checked when built.

    The first paragraph of the docstring is what ``fed-diffmic options`` says about the choice. Fields are declared by
    :func:`fed_diffmic.config.fields.option`; their defaults are what choosing it sets.
    """

    #: whatever stands in ``GROUP.options`` is passed on unread (Flower's strategies)
    free: ClassVar[bool] = False

    @classmethod
    def of(cls, config: Any) -> Self:
        """The options that a group of the configuration holds for the chosen one.

        Raises:
            ConfigError: ``GROUP.options`` holds what is none of them, or out of range.
        """
        group = config.group
        beside = {f.name for f in beside_flat(cls, type(config))}
        given = {} if cls.free or cls is Own else dict(config.options)
        for name in given:
            if name not in beside:
                allowed = f"one of {', '.join(sorted(beside))}" if beside else f"nothing with {group}={config.name}"
                raise ConfigError(f"{group}.options.{name}", given[name], allowed)
        flat = {f.name: getattr(config, f.name) for f in fields(cls) if f.name not in beside}
        try:
            built: Self = parse_dataclass(cls, {**given, **flat}, f"{group}.options")
        except ConfigError as error:
            if error.key in beside:  # from __post_init__, which does not know where it stands
                raise ConfigError(f"{group}.options.{error.key}", error.value, error.allowed, error.remedy) from error
            raise
        return built


@dataclass(frozen=True)
class Owner:
    """One registered choice of a group.

    Attributes:
        kind: what it is.
        name: by which it is chosen.
        options: the dataclass of its own options.
        made: the algorithm's class, the data set's reader, the partitioner's function; none: it is built elsewhere.
        preset: settings of its group, not its own, that choosing it sets.
        package: installed package that it comes from; empty: built in, or registered by the running program itself.
        inside: it is built in.
    """

    kind: Kind
    name: str
    options: type[Own]
    made: Any
    preset: Mapping[str, Any]
    package: str = ""
    inside: bool = False

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        declared = not self.options.__module__.startswith("fed_diffmic.config.")  # else it is the base class
        own = self.options.__doc__ if declared else self.made.__doc__
        return " ".join(inspect.cleandoc(own or "").split("\n\n")[0].split())

    def flat_values(self, config_type: type) -> dict[str, Any]:
        """What choosing it sets among the fields of the group's dataclass.

        Raises:
            ConfigError: it was registered with a setting that the group does not have.
        """
        common = [f.name for f in fields(config_type) if f.name not in ("name", "options")]
        for key in self.preset:
            if key not in common:
                raise ConfigError(
                    f"{self.kind.group}.{key}",
                    self.preset[key],
                    f"one of {', '.join(common)}, where {self.name} is registered",
                )
        beside = {f.name for f in beside_flat(self.options, config_type)}
        own = {f.name: default_of(f) for f in fields(self.options) if f.name not in beside}
        return {"name": self.name, **self.preset, **own}

    def own_values(self, config_type: type) -> dict[str, Any]:
        """Its options that are kept in ``GROUP.options``, at their defaults."""
        return {f.name: default_of(f) for f in beside_flat(self.options, config_type)}


_OWNERS: dict[str, dict[str, Owner]] = {group: {} for group in KINDS}


def register(
    kind: Kind, name: str, options: type[Own], made: Any = None, *, base: type[Own] = Own, **preset: Any
) -> Owner:
    """Enter a choice of a group under its name.

    Args:
        options: its own options.
        made: what it is; none: whoever needs it builds it.
        base: of the options of its kind.
        preset: settings of its group, not its own, that choosing it sets.

    Raises:
        ValueError: the name is taken or built in, or is no name; the options are of another kind, or have no default.
    """
    if not issubclass(options, base):
        raise ValueError(f"the options of the {kind.what} {name!r} do not derive from {base.__name__}")
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: small letters, digits and underscores, at most 64")
    inside = (options if made is None else made).__module__ == _home(kind, name)
    if not inside and is_inside(kind, name):
        raise ValueError(f"the {kind.what} {name!r} is built in and cannot be registered twice")
    if name in _OWNERS[kind.group]:
        raise ValueError(f"the {kind.what} {name!r} is registered twice")
    bare = [f.name for f in fields(options) if f.default is MISSING and f.default_factory is MISSING]
    if bare:
        raise ValueError(f"the option {bare[0]} of the {kind.what} {name!r} has no default")
    _OWNERS[kind.group][name] = Owner(kind, name, options, made, preset, inside=inside)
    return _OWNERS[kind.group][name]


def registered_names(kind: Kind) -> list[str]:
    """Every name that was registered so far, sorted."""
    return sorted(_OWNERS[kind.group])


def registered(kind: Kind, name: str) -> Owner | None:
    """What was registered under a name so far."""
    return _OWNERS[kind.group].get(name)


def attribute(kind: Kind, name: str, package: str) -> None:
    """Write down which installed package a registered name comes from."""
    _OWNERS[kind.group][name] = replace(_OWNERS[kind.group][name], package=package)


def forget(kind: Kind, name: str) -> None:
    """Take a name out of the registry (tests do)."""
    _OWNERS[kind.group].pop(name, None)


def is_inside(kind: Kind, name: str) -> bool:
    """Whether the folder of the built-in ones has a file of that name; nothing from outside is imported."""
    if not NAME.fullmatch(name):
        return False
    folder = importlib.import_module(kind.package)
    return any(module.name == name for module in pkgutil.iter_modules(folder.__path__))


def builtin(kind: Kind, name: str) -> Owner | None:
    """The built-in choice of that name; none: there is none. Nothing from outside is imported."""
    owner = _OWNERS[kind.group].get(name)
    if owner is None and is_inside(kind, name):
        importlib.import_module(_home(kind, name))
        owner = _OWNERS[kind.group].get(name)
    return owner if owner is not None and owner.inside else None


def builtins(kind: Kind) -> dict[str, Owner]:
    """Every built-in choice by name, sorted."""
    folder = importlib.import_module(kind.package)
    names = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    found = {name: builtin(kind, name) for name in names}
    return {name: owner for name, owner in found.items() if owner is not None}


def beside_flat(options: type[Own], config_type: type) -> list[Field[Any]]:
    """Those options that are no fields of the group's dataclass.

    Raises:
        ConfigError: an option has the name of a setting that is not its own, or another range than the others' of that
            name.
    """
    flat = {f.name: f for f in fields(config_type)}
    for f in fields(options):
        there = flat.get(f.name)
        if there is None:
            continue
        alike = type_text(f) == type_text(there) and all(
            f.metadata.get(rule) == there.metadata.get(rule) for rule in _RULES
        )
        if not there.metadata.get("owners") or not alike:
            group = config_type.group  # type: ignore[attr-defined]
            raise ConfigError(
                f"{group}.{f.name}",
                f"an option of {options.__module__}",
                f"an option of another name: {group}.{f.name} is a setting already ({allowed_text(there)})",
            )
    return [f for f in fields(options) if f.name not in flat]


def owned(key: str, idle: Any, owners: tuple[str, ...]) -> Any:
    """A field of a group's dataclass that says what its owners say of it: meaning, range, whether it is a path.

    Args:
        key: ``GROUP.OPTION``.
        idle: its value where none of them is chosen; specifications hold it.
        owners: built-in choices of the group that declare it.
    """
    return field(default=idle, metadata=_Late({"owners": owners}, functools.partial(_said, key, owners)))


def named(group: str, default: str, doc: str) -> Any:
    """The field ``name`` of a group's dataclass: any built-in choice, or one of an installed package."""
    known = {"doc": doc, "pattern": NAME}
    return field(default=default, metadata=_Late(known, functools.partial(_names, KINDS[group])))


class _Late(Mapping[str, Any]):
    """A field's metadata, of which a part is looked up when somebody asks."""

    def __init__(self, known: Mapping[str, Any], late: Callable[[str], Any]) -> None:
        self._known, self._late = known, late

    def __getitem__(self, key: str) -> Any:
        return self._known[key] if key in self._known else self._late(key)

    def __iter__(self) -> Iterator[str]:
        return iter(("doc", *_RULES, *self._known))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _names(kind: Kind, key: str) -> Any:
    if key == "words":
        return f"{', '.join(builtins(kind))}, or what an installed package offers"
    return None


def _said(key: str, owners: tuple[str, ...], asked: str) -> Any:
    group, _, name = key.partition(".")
    declared = {owner: _declared(group, owner, name) for owner in owners}
    if asked != "doc":
        return next(iter(declared.values())).metadata.get(asked)
    meanings: dict[str, list[str]] = {}
    for owner, f in declared.items():
        meanings.setdefault(f.metadata["doc"], []).append(owner)
    return "; ".join(f"{', '.join(names)}: {doc}" for doc, names in meanings.items())


@functools.cache
def _declared(group: str, owner: str, name: str) -> Field[Any]:
    found = builtin(KINDS[group], owner)
    if found is None:
        raise ValueError(f"{group}.{name} is said to belong to {owner}, which is not built in")
    return next(f for f in fields(found.options) if f.name == name)


def _home(kind: Kind, name: str) -> str:
    return f"{kind.package}.{name}"
