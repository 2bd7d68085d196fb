"""The reference of every setting, from the dataclasses that declare them and the options that set them.

``fed-diffmic options`` prints it; ``python -m fed_diffmic.config.reference`` writes it as docs/configuration.md.
"""

from __future__ import annotations

import difflib
import functools
import sys
import typing
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from fed_diffmic.config.choices import default_option
from fed_diffmic.config.compose import (
    CLIENT,
    FOLDER,
    SERVER,
    SIMULATE,
    Base,
    compose,
    compose_server,
    compose_site,
    group_options,
)
from fed_diffmic.config.fields import allowed_text
from fed_diffmic.config.owners import KINDS, Owner, beside_flat, builtins
from fed_diffmic.config.plugins import find, listing
from fed_diffmic.errors import UsageError

_TITLES = {
    "simulate": "`fed-diffmic simulate`",
    "flower-server": "The coordinator: `flower-server --config server.yaml`",
    "client": "A site: `fed-diffmic client --config site.yaml`",
}
_INTRO = """# Configuration

Written by `make docs` from the dataclasses of `fed_diffmic/config/`, what each algorithm, data set and partitioner
declares beside its code, and the files of `configs/`; do not edit. What installed packages add to these
([plugins.md](plugins.md)) `fed-diffmic options GROUP` shows where they are installed. Three
commands read a configuration each: the simulation, the coordinator and a site; their keys stand below in that order.

A setting is given as `key=value` on the command line, or under the same name in a YAML file
(`fed-diffmic simulate --config FILE`). Later wins: the option of each group, the file, the command line.

```yaml
# site-study.yaml
seed: 3
dataset: {name: table, root: /data/study, modality: fundus}
model: compact            # an option of the group
partition: {name: dirichlet, sites: 3, alpha: 0.3}
stages:
  guidance: {rounds: 12}  # everything else as in the option
```

- Naming an option (`model=paper`, or `name: paper` in a file) starts that group afresh from it; on the command
  line it also sets aside what the file said about that group, and may stand anywhere: `strategy.mu=0.1
  strategy=fedprox` is `strategy=fedprox strategy.mu=0.1`. `stages` follows `model` unless it is chosen.
- Values are taken as they are written: a path may hold spaces, commas and `=`; `no` is a name where a name is
  asked for; a list is `[a, b]` or `a,b`. Paths are relative to the current folder, and `~` is your home.
- `--show-config` prints the resolved configuration. The same text is saved as `config.yaml` in the run's
  folder, and given as `--config` it starts the same run again (with another `run.dir`).
- `simulate --plan` says what a run would do: images at each site, rounds, bytes that would cross, and a rough time,
  for which a few real steps are measured.
"""


@dataclass(frozen=True)
class Setting:
    """One key with what is said about it.

    Attributes:
        key: dotted key.
        default: value of the embedded default configuration, as YAML.
        allowed: what it may hold, in words.
        doc: meaning, unit, source.
        options: value in each option of its group that sets it.
    """

    key: str
    default: str
    allowed: str
    doc: str
    options: dict[str, str]


COMMANDS = {"simulate": SIMULATE, "flower-server": SERVER, "client": CLIENT}
_COMPOSE = {SIMULATE.name: compose, SERVER.name: compose_server, CLIENT.name: compose_site}


def groups_of(base: Base) -> list[str]:
    """The groups of one configuration, in the order of declaration."""
    return list(dict.fromkeys(s.key.split(".")[0] for s in settings(base) if "." in s.key))


def settings(base: Base = SIMULATE) -> list[Setting]:
    """Every setting of one configuration, in the order of declaration."""
    return list(_settings(base))


@functools.cache
def _settings(base: Base) -> tuple[Setting, ...]:
    return tuple(_walk(base, base.config_type, _COMPOSE[base.name](None, []), ""))


def option_notes(group: str) -> dict[str, str]:
    """What each option that travels with the package says about itself (a file: in its first lines)."""
    if group in KINDS:
        return {name: owner.about for name, owner in builtins(KINDS[group]).items()}
    notes = {}
    for name in group_options(group):
        lines = (FOLDER / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comment = [line.removeprefix("#").strip() for line in lines[: _comment_lines(lines)]]
        notes[name] = " ".join(comment)
    return notes


def plugin_notes(group: str) -> tuple[dict[str, str], list[str]]:
    """What installed packages add to a group, by name, and a sentence for each that cannot be used."""
    works, faults = listing(KINDS[group]) if group in KINDS else ([], [])
    origin = {owner.name: f"package {owner.package}" if owner.package else "of this program" for owner in works}
    return {owner.name: f"{owner.about} ({origin[owner.name]})" for owner in works}, faults


def options_text(name: str | None = None) -> str:
    """The reference for a terminal.

    Args:
        name: a group (of whichever command has it), one of :data:`COMMANDS`, or none for ``simulate``.

    Raises:
        UsageError: there is no such group or command.
    """
    holders = [base for base in COMMANDS.values() if name in groups_of(base)]
    # Commands that share a group's dataclass share its text (their defaults may start from another option).
    kinds = {typing.get_type_hints(base.config_type)[str(name)]: base for base in reversed(holders)}
    found = [(base, [name]) for base in reversed(kinds.values())]
    if name is None or name in COMMANDS:
        base = COMMANDS[name or "simulate"]
        found = [(base, ["", *groups_of(base)])]
    if not found:
        known = list(dict.fromkeys(group for base in COMMANDS.values() for group in groups_of(base)))
        near = difflib.get_close_matches(str(name), [*known, *COMMANDS], n=1)
        raise UsageError(
            f"there is no group {name!r}; there is {', '.join(known)}, and all of {', '.join(COMMANDS)}",
            f"Did you mean {near[0]}?" if near else "",
        )
    return "\n\n".join(_group_text(base, str(group)) for base, groups in found for group in groups)


def _group_text(base: Base, group: str) -> str:
    chosen = [s for s in settings(base) if _group_of(s) == group]
    lines = ["top level"]
    if group:
        lines = [f"{group}=OPTION" if group in base.groups else group]
        if group in base.groups:
            notes, faults = plugin_notes(group)
            lines += [f"  {option:<12} {note}" for option, note in (option_notes(group) | notes).items()]
            lines += [f"  {fault}" for fault in faults]
    for s in chosen:
        lines.append(f"\n  {s.key}={s.default}\n      {s.doc}\n      allowed: {s.allowed}")
        if s.options:
            lines.append("      " + ", ".join(f"{option}: {value}" for option, value in s.options.items()))
    for owner in [*builtins(KINDS[group]).values(), *listing(KINDS[group])[0]] if group in KINDS else []:
        for s in own_settings(base, owner):
            lines.append(f"\n  {s.key}={s.default}\n      {s.doc}\n      allowed: {s.allowed}")
    return "\n".join(lines)


def configuration_markdown() -> str:
    """docs/configuration.md."""
    parts = [_INTRO]
    for command, base in COMMANDS.items():
        parts.append(f"## {_TITLES[command]}\n")
        for group in ("", *groups_of(base)):
            parts.append(f"### {'`' + group + '`' if group else 'Top level'}\n")
            if base is not SIMULATE and group in SIMULATE.groups and group in base.groups:
                parts.append(f"As above; the default is `{group}={default_option(base, group)}`.\n")
                continue
            parts += _group_tables(base, group)
    return "\n".join(parts)


def own_settings(base: Base, owner: Owner) -> list[Setting]:
    """The options that one choice of a group has for itself, beside the group's common ones."""
    group = owner.kind.group
    config_type = typing.get_type_hints(base.config_type)[group]
    values, found = owner.own_values(config_type), beside_flat(owner.options, config_type)
    return [
        Setting(
            f"{group}.{f.name}",
            _shown(values[f.name]),
            f"{allowed_text(f)}, with {group}={owner.name}",
            f.metadata["doc"],
            {},
        )
        for f in found
    ]


def _group_tables(base: Base, group: str) -> list[str]:
    parts = []
    if group in base.groups:
        parts.append("| option | what it is |\n|---|---|")
        parts += [f"| `{group}={name}` | {note} |" for name, note in option_notes(group).items()]
        parts.append("")
    parts.append("| key | default | allowed | meaning | in the options |\n|---|---|---|---|---|")
    for s in settings(base):
        if _group_of(s) == group:
            options = ", ".join(f"{name} `{value}`" for name, value in s.options.items())
            parts.append(_row(s, options))
    for owner in builtins(KINDS[group]).values() if group in KINDS else []:
        parts += [_row(s, "") for s in own_settings(base, owner)]
    return [*parts, ""]


def _row(s: Setting, options: str) -> str:
    cells = (f"`{s.key}`", f"`{s.default}`", s.allowed, s.doc, options)
    return "| " + " | ".join(_cell(c) for c in cells) + " |"


def _group_of(setting: Setting) -> str:
    return setting.key.split(".")[0] if "." in setting.key else ""


def _walk(base: Base, config_type: type, value: Any, prefix: str) -> Iterator[Setting]:
    hints = typing.get_type_hints(config_type)
    for f in fields(config_type):
        inner, item = hints[f.name], getattr(value, f.name)
        if isinstance(inner, type) and is_dataclass(inner):
            yield from _walk(base, inner, item, f"{prefix}{f.name}.")
        else:
            yield _setting(base, f, item, f"{prefix}{f.name}")


def _setting(base: Base, f: Field[Any], value: Any, key: str) -> Setting:
    group, _, rest = key.partition(".")
    options: dict[str, str] = {}
    named = rest and rest != "name" and group in base.groups
    for name in (builtins(KINDS[group]) if group in KINDS else group_options(group)) if named else []:
        tree: Any = _option_tree(base, group, name)
        for part in rest.split("."):
            tree = tree.get(part, _ABSENT) if isinstance(tree, dict) else _ABSENT
        if tree is not _ABSENT:
            options[name] = _shown(tree)
    return Setting(key, _shown(value), allowed_text(f), f.metadata["doc"], options)


@functools.cache
def _option_tree(base: Base, group: str, name: str) -> Any:
    """What an option sets: asked once for each setting of its group."""
    if group in KINDS:
        return find(KINDS[group], name).flat_values(typing.get_type_hints(base.config_type)[group])
    return yaml.safe_load((FOLDER / group / f"{name}.yaml").read_text(encoding="utf-8"))


_ABSENT = object()


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).strip()
    return text.removesuffix("\n...").strip()


def _comment_lines(lines: list[str]) -> int:
    return next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(configuration_markdown(), encoding="utf-8")
