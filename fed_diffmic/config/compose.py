"""From a file and ``key=value`` to a checked configuration: groups by Hydra, words by us.

What each group can be chosen to be is composed by Hydra (:mod:`fed_diffmic.config.choices`). What a user writes is
understood by :mod:`fed_diffmic.config.text` and laid over that, so that nobody needs Hydra's grammar for a path with
``=``, a space or a comma in it, and every message is in our words. What the chosen algorithm, data set or partitioner
declares for itself (:mod:`fed_diffmic.config.owners`) is set like the group's own keys.

Order, later wins: the option of each group, the user's file, ``key=value`` from left to right. Naming
a group's option (``model=paper``, ``model.name=paper``, in a file ``model: paper`` or ``model: {name:
paper}``) starts that group afresh from that option; on the command line it also sets aside what
the file said about the group. Among the ``key=value`` of a command it does not matter where the option
stands: ``strategy.mu=0.1 strategy=fedprox`` must not lose its ``mu``, nor any setting of privacy.
"""

from __future__ import annotations

import functools
import json
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fed_diffmic.config.checks import check_consistency, check_epochs_count
from fed_diffmic.config.choices import (
    CLIENT,
    FOLDER,
    GROUPS,
    SERVER,
    SIMULATE,
    Base,
    composed,
    group_options,
    laid_over,
)
from fed_diffmic.config.fields import as_written
from fed_diffmic.config.owners import DATASETS, KINDS, Owner
from fed_diffmic.config.plugins import check_trusted, find, known, unknown
from fed_diffmic.config.server import ServerConfig
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.config.spec import parse_dataclass
from fed_diffmic.config.text import Scalar, Tree, UnknownKeyError, flattened, nearest_keys, parse_text, to_yaml, typed
from fed_diffmic.errors import ConfigError, UsageError

__all__ = [
    "CLIENT",
    "FOLDER",
    "GROUPS",
    "SERVER",
    "SIMULATE",
    "Base",
    "compose",
    "compose_server",
    "compose_site",
    "compose_text",
    "config_from_run_config",
    "group_options",
    "mentions",
    "to_json",
    "to_yaml",
    "unsaid",
]


def compose(config_file: Path | None, overrides: Sequence[str]) -> SimulateConfig:
    """Compose, type-check and range-check the configuration of a run.

    Nothing outside the configuration is looked at; :func:`fed_diffmic.config.checks.check_start` does that.

    Args:
        config_file: the user's YAML, or none. A ``config.yaml`` saved by a run is such a file.
        overrides: ``key=value``, with the same names as in the file.

    Raises:
        ConfigError: unknown key, wrong type, value out of range, values that exclude each other.
        UsageError: a file that cannot be read, text that is not ``key=value``.
    """
    return typing.cast(SimulateConfig, _from_file(SIMULATE, config_file, overrides))


def compose_server(config_file: Path | None, overrides: Sequence[str]) -> ServerConfig:
    """As :func:`compose`, for ``flower-server``."""
    return typing.cast(ServerConfig, _from_file(SERVER, config_file, overrides))


def compose_site(config_file: Path | None, overrides: Sequence[str]) -> SiteConfig:
    """As :func:`compose`, for ``fed-diffmic client`` and whatever else a site runs."""
    return typing.cast(SiteConfig, _from_file(CLIENT, config_file, overrides))


def compose_text(text: str, overrides: Sequence[str], *, source: str = "text") -> SimulateConfig:
    """As :func:`compose`, from the file's text (YAML or JSON); ``source`` names it in messages."""
    return typing.cast(SimulateConfig, _from_text(SIMULATE, text, overrides, source))


def _from_file(base: Base, config_file: Path | None, overrides: Sequence[str]) -> Any:
    text = "" if config_file is None else _read(config_file)
    return _from_text(base, text, overrides, str(config_file))


def _from_text(base: Base, text: str, overrides: Sequence[str], source: str) -> Any:
    tree = parse_text(text, source) if text.strip() else {}
    if tree is None or (isinstance(tree, Scalar) and tree.null):
        tree = {}
    if not isinstance(tree, dict):
        raise UsageError(f"{source} holds no `key: value`", "Write for example `model: compact`.")
    chosen = _take_choices(base, tree)
    for override in sorted(overrides, key=lambda o: chosen_group(o, base.groups) is None):
        _apply(base, override, tree, chosen)
    owners = _owners(base, tree, chosen)
    own = {group: _own_options(base, owner, tree) for group, owner in owners.items()}
    values = typed(base.config_type, tree)
    for group, options in own.items():
        if options is not None:
            values.setdefault(group, {})["options"] = options
    given = {stage: set(said) for stage, said in values.get("stages", {}).items() if isinstance(said, dict)}
    config = _build(base, chosen, values)
    for group, owner in owners.items():
        owner.options.of(getattr(config, group))  # what only they can say of their options together
    check_epochs_count(given, getattr(config, "stages", None))
    base.check(config)
    return config


def mentions(group: str, config_file: Path | None, overrides: Sequence[str]) -> bool:
    """Whether a user said anything about a group, in the file or on the command line."""
    tree = {} if config_file is None else parse_text(_read(config_file), str(config_file))
    return (isinstance(tree, dict) and group in tree) or any(
        override.partition("=")[0].partition(".")[0].strip() == group for override in overrides
    )


def unsaid(group: str, parts: Sequence[str], config_file: Path | None, overrides: Sequence[str]) -> list[str]:
    """Those of a group's nested parts of which neither the file nor the command line says anything: defaults hold."""
    tree = {} if config_file is None else parse_text(_read(config_file), str(config_file))
    said = tree.get(group) if isinstance(tree, dict) else None
    in_file = set(said) if isinstance(said, dict) else set()
    keys = [override.partition("=")[0].strip() for override in overrides]
    return [
        part
        for part in parts
        if part not in in_file and not any(f"{key}.".startswith(f"{group}.{part}.") for key in keys)
    ]


def to_json(config: SimulateConfig) -> str:
    """A resolved configuration as JSON, for Flower's run configuration (key ``config-json``)."""
    return json.dumps(as_written(config), allow_nan=False)


def config_from_run_config(run_config: Mapping[str, Any]) -> SimulateConfig:
    """The configuration that Flower's flat run configuration carries.

    Args:
        run_config: ``config-json`` (from :func:`to_json`; strings are taken literally), or else
            ``overrides`` (``key=value`` separated by spaces, quoted as for a shell) and ``run-dir``.

    Raises:
        ConfigError, UsageError: as :func:`compose`.
    """
    text = str(run_config.get("config-json") or "")
    if text:
        return _from_json(text)
    try:
        overrides = shlex.split(str(run_config.get("overrides") or ""))
    except ValueError as error:
        raise UsageError(f"overrides: {error}", "Write them as for a shell: \"model=tiny run.dir='a b'\".") from error
    if run_config.get("run-dir"):
        overrides.append(f"run.dir={run_config['run-dir']}")
    return compose(None, overrides)


@functools.lru_cache(maxsize=8)
def _from_json(text: str) -> SimulateConfig:
    """Every virtual site reads the run's configuration before each of its tasks."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError("config-json", text[:40], "a JSON object") from error
    config = typing.cast(SimulateConfig, parse_dataclass(SimulateConfig, values, "config-json"))
    check_consistency(config)
    return config


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"--config {path} cannot be read: {error.strerror}", "Give the path of a YAML file."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--config {path} is not UTF-8 text (byte {error.start})", "Save it with the encoding UTF-8."
        ) from error


def _take_choices(base: Base, tree: Tree) -> dict[str, str]:
    """Take the choice of each group out of a file's tree, leaving the values."""
    chosen: dict[str, str] = {}
    for group in base.groups:
        value = tree.get(group)
        if isinstance(value, Scalar):
            chosen[group] = _option(group, value)
            del tree[group]
        elif isinstance(value, dict) and isinstance(value.get("name"), Scalar) and _has_name(base, group):
            chosen[group] = _option(group, value.pop("name"))
    return chosen


def _has_name(base: Base, group: str) -> bool:
    return "name" in {f.name for f in fields(typing.get_type_hints(base.config_type)[group])}


def _option(group: str, name: str) -> str:
    if group in KINDS:
        if not known(KINDS[group], str(name)):
            raise unknown(KINDS[group], name)
        return str(name)
    options = group_options(group)
    if name in options:
        return str(name)
    raise ConfigError(group, name, ", ".join(options), f"`fed-diffmic options {group}` says what each one is.")


def _owners(base: Base, tree: Tree, chosen: Mapping[str, str]) -> dict[str, Owner]:
    """The code behind each choice that was made; a site imports none that its policy does not name.

    Raises:
        ConfigError: it cannot be imported, or must not be.
    """
    if base is CLIENT and "dataset" in chosen:
        policy = typed(typing.get_type_hints(SiteConfig)["policy"], tree.get("policy", {}), "policy.", SiteConfig)
        check_trusted(DATASETS, chosen["dataset"], policy.get("plugins", []))
    return {group: find(KINDS[group], name) for group, name in chosen.items() if group in KINDS}


def _own_options(base: Base, owner: Owner, tree: Tree) -> dict[str, Any] | None:
    """Every option that the group's mapping ``options`` holds for the chosen one; none: it has none.

    What was said about them is taken out of the tree.

    Raises:
        ConfigError: one that it does not have, of a wrong type or out of range.
    """
    group = owner.kind.group
    own = owner.own_values(typing.get_type_hints(base.config_type)[group])
    said = tree.get(group)
    if not own or not isinstance(said, dict):
        return own or None
    given = said.pop("options", {})
    if isinstance(given, Scalar) and given.plain:
        given = {} if given.null else parse_text(given, f"{group}.options")
    if not isinstance(given, dict):
        raise ConfigError(f"{group}.options", str(given), f"a mapping of {', '.join(own)}")
    given |= {name: said.pop(name) for name in own if name in said}
    for name in given:
        if name not in own:
            raise UnknownKeyError(owner.options, f"{group}.options.", name, given[name], base.config_type)
    return {**own, **typed(owner.options, given, f"{group}.", base.config_type)}


def chosen_group(override: str, groups: Sequence[str] = GROUPS) -> str | None:
    """The group whose option a ``key=value`` names, or none."""
    group, _, rest = override.partition("=")[0].strip().partition(".")
    return group if group in groups and rest in ("", "name") else None


def _apply(base: Base, override: str, tree: Tree, chosen: dict[str, str]) -> None:
    """Lay one ``key=value`` over the tree."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if key.startswith(("+", "~")):
        raise UsageError(
            f"{override!r}: keys can neither be added nor removed, so + and ~ have no use here",
            f"Write `{key.lstrip('+~') or 'key'}=value`; `fed-diffmic options` lists every key.",
        )
    if not equals or not key:
        near = nearest_keys(key, base.config_type) if key else []
        raise UsageError(
            f"{override!r} is not key=value",
            "Write for example "
            + (f"`{near[0]}=...`." if near else "`model=compact`.")
            + " Quote values with spaces for the shell.",
        )
    value = Scalar.of(text, plain=text != "")
    parts = key.split(".")
    if chosen_group(override, base.groups) and (len(parts) == 1 or _has_name(base, parts[0])):
        chosen[parts[0]] = _option(parts[0], value)
        tree.pop(parts[0], None)
        return
    _put(base.config_type, tree, parts, value)


def _put(root: type, tree: Tree, parts: list[str], value: Scalar) -> None:
    """Set a dotted key, refusing one that leads through a value."""
    kind: Any = root
    for depth, part in enumerate(parts[:-1]):
        hints = typing.get_type_hints(kind) if is_dataclass(kind) else {}
        inner = hints.get(part, Any)
        through_value = is_dataclass(kind) and (
            part not in hints or not (is_dataclass(inner) or typing.get_origin(inner) is dict)
        )
        if through_value:
            prefix = "".join(f"{p}." for p in parts[:depth])
            raise UnknownKeyError(typing.cast(type, kind), prefix, ".".join(parts[depth:]), value, root)
        child = tree.get(part)
        if not isinstance(child, dict):
            if child is not None and not (isinstance(child, Scalar) and child.null):
                raise ConfigError(".".join(parts[: depth + 1]), str(child), "a mapping")
            child = tree[part] = {}
        tree, kind = child, inner
    tree[parts[-1]] = value


def _build(base: Base, chosen: dict[str, str], values: Tree) -> Any:
    """Lay the values over the chosen options: a mapping takes the place of the option's, and is not mixed with it."""
    start = composed(FOLDER, base.name, tuple(sorted(chosen.items())))
    if base is SIMULATE and "external" in values:
        given = values["external"]
        values["external"] = {name: str(Path(str(path)).expanduser().absolute()) for name, path in given.items()}
    study = values.get("policy", {}).get("study", {})
    if "ranges" in study:  # those of the preset hold beside them
        study["ranges"] = {**start.policy.study.ranges, **flattened(study["ranges"])}
    return laid_over(start, values)
